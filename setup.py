"""Builds the native kernel (mcscore/jet/native.cpp) where that can be done; all else is in pyproject.toml."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = Path("mcscore/jet")
COMMON = ["-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast"]
TARGETS = {  # instruction sets: lanes of float32, options of GCC and Clang
    "avx512": (16, ["-mavx512f", "-mavx512dq", "-mavx2", "-mfma"]),
    "avx2": (8, ["-mavx2", "-mfma"]),
}


class BuildOrGoOn(build_ext):
    """Compiles the kernel once for each instruction set; without a compiler says so and goes on."""

    def run(self) -> None:
        """Build, or tell what is missing."""
        try:
            super().run()
        except Exception as error:
            told = f"mcscore: no native kernel, everything is computed in XLA ({error})"
            print(told, file=sys.stderr, flush=True)

    def build_extension(self, ext: Extension) -> None:
        """Compile ``lanes.cpp`` for every instruction set of this architecture, and link."""
        import jax.ffi

        known = platform.machine() in ("x86_64", "AMD64")
        targets = TARGETS if known else {"generic": (4, [])}
        include = [jax.ffi.include_dir()]
        objects = self.compiler.compile(
            [str(FOLDER / "native.cpp")],
            self.build_temp,
            include_dirs=include,
            extra_postargs=COMMON,
        )
        for name, (lanes, options) in targets.items():
            objects += self.compiler.compile(
                [str(FOLDER / "lanes.cpp")],
                str(Path(self.build_temp) / name),
                macros=[("TARGET", name), ("LANES", str(lanes))],
                extra_postargs=COMMON + options,
            )
        path = self.get_ext_fullpath(ext.name)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, path, target_lang="c++")


kernel = Extension("mcscore.jet._native", [str(FOLDER / "native.cpp"), str(FOLDER / "lanes.cpp")])
setup(ext_modules=[kernel], cmdclass={"build_ext": BuildOrGoOn})
