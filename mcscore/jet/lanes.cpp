// One pass over a Gaussian mixture in blocks, for one instruction set: compiled with TARGET, its name, and LANES.
//
// W queries share a vector, one in each lane, and rows are broadcast to them. Everything is in units of log 2:
// with z = sqrt(lambda / (2 ln 2)) R^T (x - alpha c) and e = sqrt(lambda / (2 ln 2)) alpha, row m has the weight
//
//     2^(bias - |z - e m|^2),    bias = log2 w.
//
// Differences z - e m cancel nothing, where an expanded square does; it takes half the work, and serves blocks that are
// small beside the noise (law.expands): with 2 z e for z, and bias - |e m|^2, the weight is 2^(-|z|^2 + bias + z m).
// Columns from law.diffused on are given values c: for them alpha is 1 and the noise 0, and the basis, any matrix, has
// rows that shift the diffused coordinates by alpha times what c says of them. Fields are of the diffused columns.
// Blocks of few columns may be replaced by a grid (law.grids). No lane looks at its neighbors: a query's jet is the
// same to the bit whoever shares its vector.

#include "native.h"

#include <cstring>

#if LANES > 4
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define UNLIKELY(condition) __builtin_expect(condition, 0)

namespace {

template <class V> struct alignas(sizeof(V)) Aligned {
  V v{};
};

constexpr float POOR = 5e-5f;  // error of a logit in float, beyond which a query is computed in double
constexpr float LOST = 1;      // and beyond which it is, even if not careful

constexpr int W = LANES, G = LANES == 16 ? 8 : 4;  // G rows are looked at together

template <class T> struct Lanes;
template <> struct Lanes<float> { typedef float V __attribute__((vector_size(4 * W))); };
template <> struct Lanes<double> { typedef double V __attribute__((vector_size(8 * W))); };
template <class T> using Vec = typename Lanes<T>::V;
using F = Vec<float>;
typedef int I __attribute__((vector_size(4 * W)));

template <class T> INLINE Vec<T> splat(T a) { return a - Vec<T>{}; }
INLINE F cast(F a) { return a; }
INLINE F cast(Vec<double> a) { return __builtin_convertvector(a, F); }
template <class A> INLINE A least(A a, A b) { return a < b ? a : b; }
template <class A> INLINE A most(A a, A b) { return a > b ? a : b; }

INLINE bool any_less(F a, F b) {
#if LANES == 16
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ) != 0;
#elif LANES == 8
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ)) != 0;
#else
  for (int l = 0; l < W; l++) if (a[l] < b[l]) return true;
  return false;
#endif
}

// 2^a for a <= 126; below -126 about 0. Relative error 3e-6, and rounding; 2^0 is 1 (what is scaled often stays).
INLINE F exp2(F a) {
#if LANES == 16
  const F f = (F)_mm512_reduce_ps((__m512)a, _MM_FROUND_TO_NEG_INF);  // a - floor(a)
  F p = splat(0.013426693f);
  p = p * f + 0.05224246f;
  p = p * f + 0.24128021f;
  p = p * f + 0.69304484f;
  p = p * f + 1.0f;
  return (F)_mm512_scalef_ps((__m512)p, (__m512)a);
#else
  a = most(a, splat(-126.0f));
  const F shift = splat(12582912.0f), shifted = a + shift;  // its last bits are round(a)
  const F f = a - (shifted - shift);
  F p = splat(0.009582854f);
  p = p * f + 0.055906426f;
  p = p * f + 0.24024099f;
  p = p * f + 0.6931242f;
  p = p * f + 1.0f;
  return (F)((I)p + ((I)shifted << 23));
#endif
}

INLINE F log2(F a) {  // positive, normal
  I bits = (I)a, exponent = (bits - 0x3f3504f3) >> 23;
  F m = (F)(bits - (exponent << 23));  // sqrt(1/2) <= m < sqrt(2)
  F u = (m - 1.0f) / (m + 1.0f), s = u * u;
  F p = splat(0.32059889f);  // 2 / ln 2 / 9 and so on: atanh
  p = p * s + 0.41219858f;
  p = p * s + 0.57707801f;
  p = p * s + 0.96179669f;
  p = p * s + 2.88539008f;
  return __builtin_convertvector(exponent, F) + u * p;
}

INLINE F positive(F a) { return a > 0.0f ? a : splat(1.0f); }  // 1 where there is nothing

INLINE F root(Vec<float> a) {
#if LANES == 16
  return (F)_mm512_sqrt_ps((__m512)a);
#elif LANES == 8
  return (F)_mm256_sqrt_ps((__m256)a);
#else
  for (int l = 0; l < W; l++) a[l] = std::sqrt(a[l]);
  return a;
#endif
}
INLINE Vec<double> root(Vec<double> a) {
  for (int l = 0; l < W; l++) a[l] = std::sqrt(a[l]);
  return a;
}

constexpr float RAISED = 60;  // logits from where the reference moves, if all weights are small numbers beside it
constexpr float CLOSE = 25;   // and if what is far below it is left out
constexpr int RAISES = 6;     // times that the reference moves for one row at most: each leaves a millionth of the way

enum Road {
  DIFFERENCES,
  PRODUCTS = 1,  // of squares expanded
  BOUNDED = 2,   // products whose logits are known to be below RAISED
  GRID = 4,      // products with weights of their own, of either sign
};

struct Rows {
  const float *row, *bias, *weight;
  int count;
  const float *expanded = nullptr;  // log2 weights less |e m|^2, for the first look
};

// What is left out: logits up to `negligible`. A first look at rows, by products in float: where bias - |e m|^2 + z m -
// reference is at most `least`, rounding allowed for, a row's logit is not above `negligible`.
struct Rough {
  float negligible;
  const F *z = nullptr;  // 2 z e; none where there is no first look
  F least = {};
};

// Sums over rows of one block, all by weight relative to 2^reference.
template <class T> struct Sums {
  Vec<T> reference;
  F mass, raised;  // by what the reference was raised
  F *mean, *square;  // sums of rows; of the second order, the rows' mean and the sum of their squared deviations
};

template <class T, int ROAD, int N>
INLINE void logits(const float *row, const float *bias, int d, const Vec<T> *z, const Vec<T> *e, Vec<T> reference,
                   F *out) {
  Vec<T> logit[N];
  for (int g = 0; g < N; g++) logit[g] = T(bias[g]) - reference;
  for (int j = 0; j < d; j++)
    for (int g = 0; g < N; g++)
      if (ROAD) {
        logit[g] += z[j] * T(row[g * d + j]);
      } else {
        Vec<T> t = z[j] - e[j] * T(row[g * d + j]);
        logit[g] -= t * t;
      }
  for (int g = 0; g < N; g++) out[g] = cast(logit[g]);
}

template <int N> INLINE F greatest(const F *logit) {
  F pairs[N];
  for (int g = 0; g < N; g++) pairs[g] = logit[g];
  for (int step = 1; step < N; step *= 2)
    for (int g = 0; g + step < N; g += 2 * step) pairs[g] = most(pairs[g], pairs[g + step]);
  return pairs[0];
}

template <class T, int D, int ORDER, int ROAD, int N>
INLINE void add_rows(const Rows &rows, int r, int columns, const Vec<T> *z, const Vec<T> *e, const Rough &rough,
                     Sums<T> &sums) {
  const int d = D ? D : columns;
  const float *row = rows.row + r * d, *bias = rows.bias + r;
  F weight[N];
  constexpr bool all = ROAD && D;  // few columns of a block small beside the noise: none is left out
  if (ROAD == DIFFERENCES && !D && rough.z) {
    logits<float, PRODUCTS, N>(row, rows.expanded + r, d, rough.z, nullptr, cast(sums.reference) + rough.least, weight);
    if (!any_less(F{}, greatest<N>(weight))) return;
  }
  logits<T, ROAD, N>(row, bias, d, z, e, sums.reference, weight);
  if (!(ROAD & BOUNDED)) {
    F top = greatest<N>(weight);
    constexpr float high = D ? RAISED : CLOSE;
    if (UNLIKELY(any_less(splat(high), top))) {
      F moved = {}, scale = splat(1.0f);
      for (int k = 0; k < RAISES && any_less(splat(high), top); k++) {
        // A large step is rounded by more than a logit may be above or below: it ends below, and another one follows.
        const F up = top > high ? top - most(top - 1e6f, F{}) * 2.4e-7f : F{};
        sums.reference += __builtin_convertvector(up, Vec<T>);
        // Anew: digits were lost to a reference far below. No product is kept for this: each is fused with its sum.
        asm volatile("" ::: "memory");
        logits<T, ROAD, N>(row, bias, d, z, e, sums.reference, weight);
        top = greatest<N>(weight);
        sums.raised += up, moved += up;
        scale *= exp2(-up);
      }
      // So far away that rounding alone moves logits: the rows that are found nearest count.
      const F rest = moved > 0.0f && (top > high || top < -1.0f) ? top : F{};
      for (int g = 0; g < N; g++) weight[g] -= rest;
      top -= rest;
      sums.mass *= scale;
      if (ORDER > 0)
        for (int j = 0; j < d; j++) (ORDER > 1 ? sums.square : sums.mean)[j] *= scale;
    }
    if (!all && !any_less(splat(rough.negligible), top)) return;
  }
  for (int g = 0; g < N; g++)  // every lane as if it were alone
    weight[g] = all || weight[g] > rough.negligible ? exp2(weight[g]) : F{};
  if (ROAD & GRID)
    for (int g = 0; g < N; g++) weight[g] *= rows.weight[r + g];
  asm volatile("" ::: "memory");  // rows are read again, from the cache: broadcasts are not to be kept
  const F before = sums.mass;
  for (int g = 0; g < N; g++) sums.mass += weight[g];
  if (ORDER == 1)
    for (int j = 0; j < d; j++) {
      F m = sums.mean[j];
      for (int g = 0; g < N; g++) m += weight[g] * row[g * d + j];
      sums.mean[j] = m;
    }
  if (ORDER == 2) {  // no difference of large squares (Chan, Golub and LeVeque 1983)
    F mass = {};
    for (int g = 0; g < N; g++) mass += weight[g];
    const F inverse = 1.0f / positive(mass), share = mass / positive(sums.mass);
    for (int j = 0; j < d; j++) {
      F middle = {}, square = {};
      for (int g = 0; g < N; g++) middle += weight[g] * row[g * d + j];
      middle *= inverse;
      for (int g = 0; g < N; g++) square += weight[g] * (row[g * d + j] - middle) * (row[g * d + j] - middle);
      const F change = middle - sums.mean[j];
      sums.mean[j] += share * change;
      sums.square[j] += square + share * before * change * change;
    }
  }
}

template <class T, int D, int ORDER, int ROAD>
NOINLINE void add_block(const Rows &rows, int columns, const Vec<T> *z, const Vec<T> *e, const Rough &rough,
                        Sums<T> &given) {
  const int d = D ? D : columns;
  constexpr int K = D ? D : 1;
  Vec<T> own_z[K], own_e[K];  // of few columns everything stays in registers
  F own_mean[K] = {};
  Sums<T> sums{given.reference, given.mass, given.raised, D ? own_mean : given.mean, given.square};
  if (D) {
    for (int j = 0; j < D; j++) own_z[j] = z[j], own_e[j] = ROAD ? z[j] : e[j], own_mean[j] = given.mean[j];
    z = own_z, e = own_e;
  }
  int r = 0;
  for (; r + G <= rows.count; r += G) add_rows<T, D, ORDER, ROAD, G>(rows, r, d, z, e, rough, sums);
  for (; r < rows.count; r++) add_rows<T, D, ORDER, ROAD, 1>(rows, r, d, z, e, rough, sums);
  for (int j = 0; j < D; j++) given.mean[j] = own_mean[j];
  given.reference = sums.reference, given.mass = sums.mass, given.raised = sums.raised;
}

template <class T, int D, int ORDER>
void add_along(int road, const Rows &rows, int d, const Vec<T> *z, const Vec<T> *e, const Rough &rough, Sums<T> &sums) {
  if constexpr (sizeof(T) == 4 && ORDER < 2) {  // doubles and second moments are taken from differences
    if constexpr (D > 0 && D <= GRID_COLUMNS) {
      if (road == (PRODUCTS | GRID)) return add_block<T, D, ORDER, PRODUCTS | GRID>(rows, d, z, e, rough, sums);
      if (road == (PRODUCTS | GRID | BOUNDED))
        return add_block<T, D, ORDER, PRODUCTS | GRID | BOUNDED>(rows, d, z, e, rough, sums);
    }
    if (road == (PRODUCTS | BOUNDED)) return add_block<T, D, ORDER, PRODUCTS | BOUNDED>(rows, d, z, e, rough, sums);
    if (road == PRODUCTS) return add_block<T, D, ORDER, PRODUCTS>(rows, d, z, e, rough, sums);
  }
  add_block<T, D, ORDER, DIFFERENCES>(rows, d, z, e, rough, sums);
}

template <class T, int ORDER>
void add(int road, const Rows &rows, int d, const Vec<T> *z, const Vec<T> *e, const Rough &rough, Sums<T> &sums) {
  if constexpr (sizeof(T) == 4 && ORDER < 2) switch (d) {
#define CASE(D) case D: return add_along<T, D, ORDER>(road, rows, d, z, e, rough, sums);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
  }
  add_along<T, 0, ORDER>(road, rows, d, z, e, rough, sums);
}

// A vector's queries as one block sees them.
template <class T> struct Seen {
  std::vector<Aligned<Vec<T>>> shifted, y, z, e, precision;
  std::vector<Aligned<Vec<T>>> told;  // of y, by the given columns, over alpha
  Vec<T> norm;  // log2 of the density's normalizer

  explicit Seen(int d) : shifted(d), y(d), z(d), e(d), precision(d), told(d) {}
};

template <class T> struct Tile {
  std::vector<Aligned<Vec<T>>> x;
  Vec<T> alpha, variance, slope, constant, offset;
  explicit Tile(int d) : x(d) {}
};

template <class T>
void look(const Law &law, int b, const Tile<T> &tile, Seen<T> &seen) {
  const int d = law.columns, diffused = law.diffused;
  const float *center = law.centers + b * d, *variances = law.variances + b * d;
  const float *basis = law.bases ? law.bases + (size_t)b * d * d : nullptr;
  const auto alpha = [&](int j) { return j < diffused ? tile.alpha : splat(T(1)); };
  for (int j = 0; j < d; j++) seen.shifted[j].v = tile.x[j].v - alpha(j) * T(center[j]);
  for (int j = 0; j < d; j++) seen.y[j].v = basis ? Vec<T>{} : seen.shifted[j].v;
  if (diffused < d) {
    for (int i = diffused; i < d; i++)
      for (int j = 0; j < d; j++) seen.y[j].v += seen.shifted[i].v * T(basis[i * d + j]);
    for (int j = 0; j < diffused; j++) seen.told[j].v = seen.y[j].v, seen.y[j].v *= tile.alpha;
  }
  if (basis)
    for (int i = 0; i < diffused; i++) {
      Vec<T> s = seen.shifted[i].v;
      for (int j = 0; j < d; j++) seen.y[j].v += s * T(basis[i * d + j]);
    }
  if (law.norm.size()) {
    for (int j = 0; j < d; j++) {
      const Vec<T> scale = splat(T(law.scale[b * d + j]));
      seen.precision[j].v = scale * scale * T(1.3862943611198906);  // 2 ln 2
      seen.z[j].v = scale * seen.y[j].v;
      seen.e[j].v = scale * alpha(j);
    }
    seen.norm = splat(T(law.norm[b]));
    return;
  }
  Vec<T> squared = tile.alpha * tile.alpha, norm = {};
  F product = splat(1.0f);
  for (int j = 0; j < d; j++) {
    Vec<T> precision = T(1) / (j < diffused ? squared * T(variances[j]) + tile.variance : splat(T(variances[j])));
    Vec<T> scale = root(precision * T(0.72134752044448170));  // 1 / (2 ln 2)
    seen.precision[j].v = precision;
    seen.z[j].v = scale * seen.y[j].v;
    seen.e[j].v = scale * alpha(j);
    // The logarithm of a product, as long as it holds: of the mantissas, and of exponents apart.
    F p = cast(precision);
    I exponent = (((I)p) >> 23) - 127;
    norm += __builtin_convertvector(exponent, Vec<T>);
    product *= (F)((I)p - (exponent << 23));
    if (j % 64 == 63 || j == d - 1) {
      norm += __builtin_convertvector(log2(product), Vec<T>);
      product = splat(1.0f);
    }
  }
  seen.norm = T(0.5) * norm - T(1.3257480647361593) * d;  // log2(2 pi) / 2
}

template <class T> F squares(const Seen<T> &seen) {
  F sum = {};
  for (const auto &z : seen.z) sum += cast(z.v) * cast(z.v);
  return sum;
}

// Of a logit |t|^2, t = z - e m, in float: that of z, times t, and its own, if the columns' do not add up.
INLINE F rounding(F squared, F length, int d) {
  return (root(squared * length) + squared) * float(6e-8 / std::sqrt(d));
}

// Bounds of the log2 mass of rows in a box: above by the box, below by Jensen's inequality (see native.cpp).
INLINE void bounds(const Boxes &boxes, int i, int d, const Seen<float> &seen, F &above, F &below) {
  const float *low = &boxes.low[i * d], *high = &boxes.high[i * d], *mean = &boxes.mean[i * d];
  const float *spread = &boxes.spread[i * d];
  F outside = {}, around = {};
  for (int j = 0; j < d; j++) {
    F z = seen.z[j].v, e = seen.e[j].v;
    F off = most(most(z - e * high[j], e * low[j] - z), F{});
    F t = z - e * mean[j];
    outside += off * off;
    around += t * t + e * e * spread[j];
  }
  above = seen.norm + boxes.mass[i] - outside;
  below = seen.norm + boxes.mass[i] - around;
}

template <class T>
void load(const Law &law, const Queries &q, const int *index, int count, Tile<T> &tile) {
  for (int l = 0; l < W; l++) {
    const int i = index[l < count ? l : 0];
    for (int j = 0; j < law.columns; j++) tile.x[j].v[l] = q.x[(size_t)i * law.columns + j];
    const int k = q.shared ? 0 : i;
    tile.alpha[l] = q.alpha[k], tile.variance[l] = q.variance[k];
    tile.slope[l] = q.slope[k], tile.constant[l] = q.constant[k], tile.offset[l] = q.offset[k];
  }
}

// The jet of one tile: of the blocks that were added so far.
template <class T, int ORDER> struct Jet {
  const Law &law;
  const Tile<T> &tile;
  Seen<T> seen;
  Seen<float> near;  // the same in float
  Vec<T> reference = {};
  F mass, laplacian, error, doubt;  // error: of logits; doubt: of masses, relative to the reference
  std::vector<Aligned<F>> twice, mean, square, field, local;

  Jet(const Law &law, const Tile<T> &tile)
      : law(law), tile(tile), seen(law.columns), near(law.columns), twice(law.columns), mean(law.columns),
        square(law.columns), field(law.columns), local(law.columns) {}

  void start(F below) {
    reference = __builtin_convertvector(below, Vec<T>);
    mass = laplacian = error = doubt = F{};
    for (Aligned<F> &f : field) f.v = F{};
  }

  F leaf_counts(int leaf, F threshold) const {  // 1 where it does
    F high, low;
    if (law.leaf.mass[leaf] < -1e29f) return F{};
    bounds(law.leaf, leaf, law.columns, near, high, low);
    return threshold < high ? splat(1.0f) : F{};
  }

  // Add a block's grid or, where it has none, those of its leaves that count; its mass is known to be at most 2^above.
  void add_block(int b, F above, F threshold, bool grids) {
    const int d = law.columns;
    const F length = squares(seen);
    for (int j = 0; j < d; j++) {
      const F z = near.z[j].v = cast(seen.z[j].v), e = near.e[j].v = cast(seen.e[j].v);
      twice[j].v = 2.0f * z * e;
      mean[j].v = square[j].v = F{};
    }
    near.norm = cast(seen.norm);
    const bool expands = sizeof(T) == 4 && ORDER < 2 && law.expands[b];
    const Grid *grid = expands && grids && law.grids[b].bias.size() ? &law.grids[b] : nullptr;
    int road = DIFFERENCES;
    const Vec<T> *z = &seen.z[0].v, shift = expands ? __builtin_convertvector(length, Vec<T>) : Vec<T>{};
    Sums<T> sums{reference - seen.norm + shift, F{}, F{}, &mean[0].v, &square[0].v};
    Rough rough{law.tiny};
    if (expands) {
      if constexpr (sizeof(T) == 4) z = &twice[0].v;
      const bool bounded = d <= WIDE && !any_less(splat(RAISED), above - cast(reference));
      road = PRODUCTS | (bounded ? BOUNDED : 0) | (grid ? GRID : 0);
    } else if (law.radius.size() && d > WIDE) {
      const F from = cast(sums.reference), size = most(from, -from) + length + law.radius[b];
      rough = {law.tiny, &twice[0].v, law.tiny + length - (2.4e-7f * (d + 8)) * size};
    }
    F counted = {};
    const auto add_part = [&](const Rows &rows, F counts) {  // 0 where it does not: far below the reference
      const Vec<T> before = sums.reference, away = __builtin_convertvector(1.0f - counts, Vec<T>);
      sums.reference = away > 0 ? before + T(1e6) : before;
      add<T, ORDER>(road, rows, d, z, &seen.e[0].v, rough, sums);
      sums.reference = away > 0 ? before : sums.reference;
      counted = most(counted, counts);
    };
    const size_t first = (size_t)b * law.height;
    const F one = splat(1.0f), some = law.skips ? (threshold < above ? one : F{}) : one;
    if (grid) {
      add_part({grid->rows.data(), grid->bias.data(), grid->weight.data(), (int)grid->bias.size()}, some);
      const F wrong = 0.5f * (above + near.norm + law.whole.mass[b]) - cast(reference);  // see native.cpp
      doubt += some * law.share * exp2(least(wrong, splat(100.0f)));
    } else {
      const std::vector<float> &bias = expands ? law.expanded : law.bias;
      const int filled = law.filled[b], step = law.skips ? LEAF : law.height;
      F counts = some;
      for (int r = 0, from = 0; r < filled; r += step) {
        F next = some;  // leaves that count in the same lanes are added together
        if (r + step < filled && step < filled) next = leaf_counts(b * law.leaves + r / LEAF + 1, threshold);
        if (r == 0 && step < filled) counts = leaf_counts(b * law.leaves, threshold);
        if (r + step < filled && !any_less(counts, next) && !any_less(next, counts)) continue;
        const float *expanded = rough.z ? &law.expanded[first + from] : nullptr;
        const int count = std::min(r + step, filled) - from;
        const Rows rows{law.rows + (first + from) * d, &bias[first + from], nullptr, count, expanded};
        if (any_less(F{}, counts)) add_part(rows, counts);
        from = r + step, counts = next;
      }
    }

    const F part = counted > 0.0f && sums.mass > 0.0f ? sums.mass : F{}, scale = exp2(-sums.raised);
    mass *= scale;
    doubt *= scale;
    const Vec<T> raised = __builtin_convertvector(sums.raised, Vec<T>);
    reference = raised > 0 ? sums.reference - shift + seen.norm : reference;
    // Not kept = 1 - share: a block that hardly counts may have a field of any size.
    const F total = positive(mass + part), share = part / total, kept = mass / total;
    mass += part;
    const F squared = most(law.whole.mass[b] - cast(reference - seen.norm) - log2(positive(part)), F{});
    error = kept * error + share * rounding(squared, length, d);
    if (ORDER > 0) add_field(b, 1.0f / positive(part), share, kept);
  }

  void add_field(int b, F inverse, F share, F kept) {
    const int d = law.columns, diffused = law.diffused;
    const F a = cast(tile.alpha), offset = cast(tile.offset);
    const float *variances = law.variances + b * d, *center = law.centers + b * d;
    const float *basis = law.bases ? law.bases + (size_t)b * d * d : nullptr;
    F own = {}, between = {};  // parts of the Laplacian
    for (int j = 0; j < diffused; j++) {
      const F precision = cast(seen.precision[j].v), middle = ORDER > 1 ? mean[j].v : mean[j].v * inverse;
      const F along = (cast(tile.slope) * variances[j] + cast(tile.constant)) * precision;
      local[j].v = along * cast(seen.y[j].v) + (offset - a * along) * middle;
      if (diffused < d) local[j].v -= offset * cast(seen.told[j].v);
      if (ORDER > 1) own += a * a * precision * precision * square[j].v * inverse - precision;
    }
    for (int i = 0; i < diffused; i++) {
      F f = basis ? F{} : local[i].v;
      if (basis)
        for (int j = 0; j < diffused; j++) f += local[j].v * basis[i * d + j];
      f += offset * center[i];
      const F change = f - field[i].v;
      between += change * change;
      field[i].v = kept * field[i].v + share * f;
    }
    laplacian = kept * laplacian + share * own + share * kept * between;
  }

  // Write all lanes, and return those whose digits float did not keep.
  unsigned write(const Queries &q, const int *index, int count, const Out &out) const {
    const Vec<T> log_p = (reference + __builtin_convertvector(log2(positive(mass)), Vec<T>)) * T(0.69314718055994531);
    const F wrong = error + doubt / positive(mass);
    unsigned poor = 0;
    for (int l = 0; l < count; l++) {
      const bool kept = mass[l] > 0 && mass[l] < INFINITY && wrong[l] < (law.careful ? POOR : LOST);
      if (sizeof(T) == 4 && !kept) poor |= 1u << l;
      const size_t i = index[l];
      float ill = 0;  // NaN where the query is not finite
      for (int j = 0; j < law.columns; j++) ill += 0 * q.x[i * law.columns + j];
      out.log_p[i] = (mass[l] > 0 ? (float)log_p[l] : -INFINITY) + ill;
      if (ORDER > 0)
        for (int j = 0; j < law.diffused; j++) out.field[i * law.diffused + j] = field[j].v[l] + ill;
      if (ORDER > 1) out.laplacian[i] = laplacian[l] + ill;
    }
    return poor;
  }
};

// What is known of a tile before its rows are looked at: bounds of every block's log2 mass, and the best one below.
struct Bounds {
  const Law &law;
  Seen<float> seen;
  std::vector<Aligned<F>> above, own;
  F below;

  bool closer;

  Bounds(const Law &law, bool closer)
      : law(law), seen(law.columns), above(law.blocks), own(law.blocks), closer(closer && law.leaves > 1) {}

  void find(const Tile<float> &tile) {
    below = splat(-INFINITY);
    for (int b = 0; b < law.blocks; b++) {
      look(law, b, tile, seen);
      bounds(law.whole, b, law.columns, seen, above[b].v, own[b].v);
      below = most(below, own[b].v);
    }
    if (closer) look_closer(tile);
  }

  // Rows of the leaf that a lane is nearest to, in the blocks that are nearest to it: each one's weight is a bound below.
  void look_closer(const Tile<float> &tile) {
    const F best = below - 1.0f;
    F closest = splat(-INFINITY);
    I leaf = I{} - 1;
    for (int b = 0; b < law.blocks; b++) {
      if (!any_less(best, own[b].v)) continue;
      look(law, b, tile, seen);
      for (int i = b * law.leaves; i < (b + 1) * law.leaves; i++) {
        F high, low;
        bounds(law.leaf, i, law.columns, seen, high, low);
        low = best < own[b].v ? low : splat(-INFINITY);  // as if every lane were alone
        leaf = closest < low ? I{} + i : leaf;
        closest = most(closest, low);
      }
    }
    below = most(below, closest);
    for (int l = 0; l < W; l++) {
      const int i = leaf[l], b = i / law.leaves, first = i % law.leaves * LEAF;
      bool known = i < 0;
      for (int k = 0; k < l; k++) known |= leaf[k] == i;
      if (known) continue;
      look(law, b, tile, seen);
      const F top = greatest_row(b, first, std::min(first + LEAF, law.filled[b]));
      below = leaf == I{} + i ? most(below, top) : below;
    }
  }

  F greatest_row(int b, int first, int last) const {
    const int d = law.columns;
    F top = splat(-INFINITY);
    for (int r = first; r < last; r++) {
      const float *row = law.rows + ((size_t)b * law.height + r) * d;
      F squared = {};
      for (int j = 0; j < d; j++) {
        const F t = seen.z[j].v - seen.e[j].v * row[j];
        squared += t * t;
      }
      top = most(top, seen.norm + law.bias[(size_t)b * law.height + r] - squared);
    }
    return top;
  }

  F reference() const { return below - (4e-7f * law.columns) * most(below, -below); }  // float rounded both bounds
  F threshold() const { return reference() + law.negligible; }
};

// Write the jets of one tile; return the lanes that are to be computed with more care.
template <class T, int ORDER>
NOINLINE unsigned one_tile(Jet<T, ORDER> &jet, const Queries &q, const int *index, int count, const Bounds &known,
                           const Out &out, bool grids) {
  const Law &law = jet.law;
  const F threshold = known.threshold();
  jet.start(known.reference());
  for (int b = 0; b < law.blocks; b++) {
    const F above = known.above[b].v;
    if (law.whole.mass[b] < -1e29f || (law.skips && !any_less(threshold, above))) continue;
    look(law, b, jet.tile, jet.seen);
    jet.add_block(b, above, threshold, grids);
  }
  return jet.write(q, index, count, out);
}

struct FlushToZero {  // tiny weights are nothing, and slow
#if LANES > 4
  unsigned mode = _mm_getcsr();
  FlushToZero() { _mm_setcsr(mode | 0x8040); }
  ~FlushToZero() { _mm_setcsr(mode); }
#endif
};

template <class T, int ORDER>
void all_tiles(const Law &law, const Queries &q, const int *index, int count, const Out &out, Care care, char *poor) {
  FlushToZero flush;
  Tile<float> tile(law.columns);
  Tile<T> exact(law.columns);
  Bounds known(law, law.skips);
  Jet<T, ORDER> jet(law, exact);
  for (; count > 0; index += W, count -= W) {
    const int some = std::min(W, count);
    load(law, q, index, some, tile);
    load(law, q, index, some, exact);
    known.find(tile);
    const unsigned lanes = one_tile(jet, q, index, some, known, out, care == GRIDS);
    for (int l = 0; l < some; l++) poor[index[l]] = lanes >> l & 1;
  }
}

template <int ORDER>
void in_order(const Law &law, const Queries &q, const int *index, int count, const Out &out, Care care, char *poor) {
  if (care == DOUBLES) all_tiles<double, ORDER>(law, q, index, count, out, care, poor);
  else all_tiles<float, ORDER>(law, q, index, count, out, care, poor);
}

void run(const Law &law, const Queries &q, const int *index, int count, const Out &out, int order, Care care,
         char *poor) {
  if (order == 0) in_order<0>(law, q, index, count, out, care, poor);
  if (order == 1) in_order<1>(law, q, index, count, out, care, poor);
  if (order == 2) in_order<2>(law, q, index, count, out, care, poor);
}

// Rows that are looked at for a tile where leaves are left out.
double counted(const Law &law, const Queries &q, const int *index, int count) {
  Tile<float> tile(law.columns);
  Bounds known(law, true);
  load(law, q, index, count, tile);
  known.find(tile);
  Jet<float, 0> jet(law, tile);
  const F threshold = known.threshold();
  double rows = 0;
  for (int b = 0; b < law.blocks; b++) {
    if (!any_less(threshold, known.above[b].v)) continue;
    const int filled = law.filled[b], all = law.points(b);
    look(law, b, tile, jet.near);
    for (int r = 0; r < filled; r += LEAF) {  // a grid is looked at as a whole
      const bool counts = any_less(F{}, jet.leaf_counts(b * law.leaves + r / LEAF, threshold));
      rows += all < filled ? double(all) * std::min(LEAF, filled - r) / filled : counts * std::min(LEAF, filled - r);
    }
  }
  return rows;
}

// The leaf that each query is nearest to, in the given blocks, or the block, where none is given.
void nearest(const Law &law, const Queries &q, const int *index, int count, int *place, bool leaves) {
  const int d = law.columns;
  Tile<float> tile(d);
  Seen<float> seen(d);
  load(law, q, index, count, tile);
  F best = splat(-INFINITY);
  I at = {}, given = {};
  for (int l = 0; l < count; l++) given[l] = leaves ? place[l] : 0;
  const auto look_at = [&](const Boxes &boxes, int i, I candidates) {
    F high, low;
    bounds(boxes, i, d, seen, high, low);
    low = candidates ? low : splat(-INFINITY);
    at = low > best ? i - I{} : at;
    best = low > best ? low : best;
  };
  for (int b = 0; b < law.blocks; b++) {
    const I here = given == b - I{};
    bool any = !leaves;
    for (int l = 0; l < count; l++) any |= here[l] != 0;
    if (!any) continue;
    look(law, b, tile, seen);
    if (!leaves) look_at(law.whole, b, I{} == I{});
    if (leaves)
      for (int i = b * law.leaves; i < (b + 1) * law.leaves; i++) look_at(law.leaf, i, here);
  }
  for (int l = 0; l < count; l++) place[l] = at[l];
}

// The innermost loop alone, over one leaf that stays in the nearest cache.
double loop(int d, int repeats) {
  std::vector<float> row(LEAF * d, 0.1f), bias(LEAF, -1.0f);
  std::vector<Aligned<F>> z(d), e(d), mean(d), square(d);
  Sums<float> sums{F{}, F{}, F{}, &mean[0].v, &square[0].v};
  const int road = PRODUCTS | (d <= WIDE ? BOUNDED : 0);
  for (int i = 0; i < repeats; i++)
    add<float, 1>(road, {row.data(), bias.data(), nullptr, LEAF}, d, &z[0].v, &e[0].v, Rough{-45}, sums);
  return double(repeats) * LEAF * W + 0 * sums.mass[0];
}

}  // namespace

#define TEXT(name) #name
#define NAME(target) TEXT(target)
extern const Target TARGET{NAME(TARGET), W, run, nearest, counted, loop};
