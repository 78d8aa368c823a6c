// What the native kernel's files share: native.cpp, and lanes.cpp once per instruction set.

#include <cmath>
#include <vector>

constexpr int LEAF = 64;         // rows that are left out together; mixtures/layout.py makes them neighbors
constexpr int GRID_COLUMNS = 3;  // up to which rows may be replaced by a grid
constexpr int WIDE = 8;          // columns, up to which everything stays in registers

// Of sets of rows: their box, mean and variance along the basis, and log2 of their mass.
struct Boxes {
  std::vector<float> low, high, mean, spread, mass;

  void resize(size_t sets, int columns) {
    for (auto *part : {&low, &high, &mean, &spread}) part->resize(sets * columns);
    mass.resize(sets);
  }
};

// A few points with weights, of either sign, that stand for the rows of a block: none if that does not pay.
struct Grid {
  std::vector<float> rows, bias, weight;
};

struct Law {
  int blocks, height, columns;
  int diffused;  // columns; the others are given: neither scaled nor noisy, see lanes.cpp
  const float *rows, *centers, *bases, *variances;
  int leaves = 1;          // of a block, each of LEAF rows
  Boxes whole, leaf;       // of blocks and of leaves
  std::vector<float> bias, expanded, radius;  // log2 weights; less |e m|^2; the largest |e m|^2 of a block
  std::vector<double> scale, norm;  // of every block, z / y and log2 of the normalizer, where all queries have one time
  std::vector<char> expands;
  std::vector<Grid> grids;  // of every block, or none at all
  std::vector<int> filled;
  bool skips, careful;
  int points(int b) const { return grids.size() && grids[b].bias.size() ? grids[b].bias.size() : filled[b]; }

  float share, negligible, tiny;  // of the density that may be missed, and its log2 for a leaf and for a row
};

struct Queries {
  int count;
  const float *x, *alpha, *variance, *slope, *constant, *offset;
  bool shared;  // one time for all
};

struct Out {
  float *log_p, *field, *laplacian;
};

enum Care { GRIDS, ROWS, DOUBLES };  // rows in place of grids, doubles in place of floats

// Of queries whose numbers `index` lists: their jets, and which of them are poor and need more care. Of up to `lanes` of them: the block that each is nearest to, once
// that is known its nearest leaf, and how many rows they look at together where leaves are left out.
struct Target {
  const char *name;
  int lanes;
  void (*jet)(const Law &, const Queries &, const int *index, int count, const Out &, int order, Care, char *poor);
  void (*nearest)(const Law &, const Queries &, const int *index, int count, int *place, bool leaves);
  double (*counted)(const Law &, const Queries &, const int *index, int count);
  double (*loop)(int columns, int repeats);  // pairs of queries and rows: what the processor can do, for benchmarks
};

extern const Target avx512, avx2, generic;
