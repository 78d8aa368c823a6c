// What the native kernel's files share: native.cpp, and lanes.cpp once per instruction set.

#include <cmath>
#include <vector>

constexpr int GRID_COLUMNS = 3;

// A few points with weights, of either sign, that stand for the rows of a block: none if that does not pay.
struct Grid {
  std::vector<float> rows, bias, weight;
};

struct Law {
  int blocks, height, columns;
  const float *rows, *centers, *bases, *variances;
  std::vector<float> bias, mass, low, high, mean, spread;  // log2 weights; of every block, see native.cpp
  std::vector<float> expanded;  // log2 weights less |e m|^2, in blocks that may expand the square
  std::vector<char> expands;
  std::vector<Grid> grids;  // of every block, or none at all
  std::vector<int> filled;
  bool skips, careful;
  float share, negligible;  // of the density that may be missed, and its log2 for a block
};

struct Queries {
  int count;
  const float *x, *alpha, *variance, *slope, *constant, *offset;
  bool shared;  // one time for all
};

struct Out {
  float *log_p, *field, *laplacian;
};

// Of up to `lanes` queries, whose numbers `index` lists: their jets, or the block that each is nearest to.
struct Target {
  const char *name;
  int lanes;
  void (*jet)(const Law &, const Queries &, const int *index, int count, const Out &, int order);
  void (*nearest)(const Law &, const Queries &, const int *index, int count, int *block);
};

extern const Target avx512, avx2, generic;
