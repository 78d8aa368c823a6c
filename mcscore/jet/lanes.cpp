// One pass over a Gaussian mixture in blocks, for one instruction set: compiled with TARGET, its name, and LANES.
//
// W queries share a vector, one in each lane, and rows are broadcast to them. Everything is in units of log 2:
// with z = sqrt(lambda / (2 ln 2)) R^T (x - alpha c) and e = sqrt(lambda / (2 ln 2)) alpha, row m has the weight
//
//     2^(bias - |z - e m|^2),    bias = log2 w.
//
// Differences z - e m cancel nothing, where an expanded square does; it takes half the work, and serves blocks that are
// small beside the noise (law.expands): with 2 z e for z, and bias - |e m|^2, the weight is 2^(-|z|^2 + bias + z m).
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

// 2^a for a <= 126; below -126 about 0. Relative error 3e-6, and rounding.
INLINE F exp2(F a) {
#if LANES == 16
  F f = (F)_mm512_reduce_ps((__m512)a, _MM_FROUND_TO_NEG_INF);  // a - floor(a)
#else
  a = most(a, splat(-126.0f));
  const F shift = splat(12582912.0f), shifted = (a - 0.5f) + shift;  // its last bits are round(a - 1/2)
  F f = a - (shifted - shift);
#endif
  F p = splat(0.01353417f);
  p = p * f + 0.05201146f;
  p = p * f + 0.24144275f;
  p = p * f + 0.69300383f;
  p = p * f + 1.0000026f;
#if LANES == 16
  return (F)_mm512_scalef_ps((__m512)p, (__m512)a);
#else
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

constexpr float RAISED = 60, NEGLIGIBLE = -45;  // logits: from where the reference moves, up to where nothing counts

enum Road {
  DIFFERENCES,
  PRODUCTS = 1,  // of squares expanded
  BOUNDED = 2,   // products whose logits are known to be below RAISED
  GRID = 4,      // products with weights of their own, of either sign
};

struct Rows {
  const float *row, *bias, *weight;
  int count;
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
INLINE void add_rows(const Rows &rows, int r, int columns, const Vec<T> *z, const Vec<T> *e, Sums<T> &sums) {
  const int d = D ? D : columns;
  const float *row = rows.row + r * d, *bias = rows.bias + r;
  F weight[N];
  logits<T, ROAD, N>(row, bias, d, z, e, sums.reference, weight);
  if (!(ROAD & BOUNDED)) {
    F top = greatest<N>(weight);
    if (UNLIKELY(any_less(splat(RAISED), top))) {
      F up = top > RAISED ? top : F{}, scale = exp2(-up);
      sums.reference += __builtin_convertvector(up, Vec<T>);
      // Anew: digits were lost to a reference far below.
      logits<T, ROAD, N>(row, bias, d, z, e, sums.reference, weight);
      top = greatest<N>(weight);
      sums.raised += up;
      sums.mass *= scale;
      if (ORDER > 0)
        for (int j = 0; j < d; j++) (ORDER > 1 ? sums.square : sums.mean)[j] *= scale;
    }
    if (ROAD == DIFFERENCES && !any_less(splat(NEGLIGIBLE), top)) return;
  }
  for (int g = 0; g < N; g++)  // of a block small beside the noise no part is negligible
    weight[g] = ROAD || weight[g] > NEGLIGIBLE ? exp2(weight[g]) : F{};
  if (ROAD & GRID)
    for (int g = 0; g < N; g++) weight[g] *= rows.weight[r + g];
  asm volatile("" ::: "memory");  // rows are read again, from the cache: broadcasts are not to be kept
  F sum[2] = {};
  for (int g = 0; g < N; g++) sum[g % 2] += weight[g];
  const F mass = sum[0] + sum[1], before = sums.mass;
  sums.mass += mass;
  if (ORDER == 1)
    for (int j = 0; j < d; j++) {
      F m[2] = {sums.mean[j], F{}};
      for (int g = 0; g < N; g++) m[g % 2] += weight[g] * row[g * d + j];
      sums.mean[j] = m[0] + m[1];
    }
  if (ORDER == 2) {  // no difference of large squares (Chan, Golub and LeVeque 1983)
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
NOINLINE void add_block(const Rows &rows, int columns, const Vec<T> *z, const Vec<T> *e, Sums<T> &given) {
  const int d = D ? D : columns;
  constexpr int K = D ? D : 1;
  Vec<T> own_z[K], own_e[K];  // of few columns everything stays in registers
  F own_mean[K] = {};
  Sums<T> sums{given.reference, given.mass, given.raised, D ? own_mean : given.mean, given.square};
  if (D) {
    for (int j = 0; j < D; j++) own_z[j] = z[j], own_e[j] = ROAD ? z[j] : e[j];
    z = own_z, e = own_e;
  }
  int r = 0;
  for (; r + G <= rows.count; r += G) add_rows<T, D, ORDER, ROAD, G>(rows, r, d, z, e, sums);
  for (; r < rows.count; r++) add_rows<T, D, ORDER, ROAD, 1>(rows, r, d, z, e, sums);
  for (int j = 0; j < D; j++) given.mean[j] = own_mean[j];
  given.reference = sums.reference, given.mass = sums.mass, given.raised = sums.raised;
}

template <class T, int D, int ORDER>
void add_along(int road, const Rows &rows, int d, const Vec<T> *z, const Vec<T> *e, Sums<T> &sums) {
  if constexpr (sizeof(T) == 4 && ORDER < 2) {  // doubles and second moments are taken from differences
    if constexpr (D > 0 && D <= GRID_COLUMNS) {
      if (road == (PRODUCTS | GRID)) return add_block<T, D, ORDER, PRODUCTS | GRID>(rows, d, z, e, sums);
      if (road == (PRODUCTS | GRID | BOUNDED))
        return add_block<T, D, ORDER, PRODUCTS | GRID | BOUNDED>(rows, d, z, e, sums);
    }
    if (road == (PRODUCTS | BOUNDED)) return add_block<T, D, ORDER, PRODUCTS | BOUNDED>(rows, d, z, e, sums);
    if (road == PRODUCTS) return add_block<T, D, ORDER, PRODUCTS>(rows, d, z, e, sums);
  }
  add_block<T, D, ORDER, DIFFERENCES>(rows, d, z, e, sums);
}

template <class T, int ORDER>
void add(int road, const Rows &rows, int d, const Vec<T> *z, const Vec<T> *e, Sums<T> &sums) {
  if constexpr (sizeof(T) == 4 && ORDER < 2) switch (d) {
#define CASE(D) case D: return add_along<T, D, ORDER>(road, rows, d, z, e, sums);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
  }
  add_along<T, 0, ORDER>(road, rows, d, z, e, sums);
}

// A vector's queries as one block sees them.
template <class T> struct Seen {
  std::vector<Aligned<Vec<T>>> shifted, y, z, e, precision;
  Vec<T> norm;  // log2 of the density's normalizer

  explicit Seen(int d) : shifted(d), y(d), z(d), e(d), precision(d) {}
};

template <class T> struct Tile {
  std::vector<Aligned<Vec<T>>> x;
  Vec<T> alpha, variance, slope, constant, offset;
  explicit Tile(int d) : x(d) {}
};

template <class T>
void look(const Law &law, int b, const Tile<T> &tile, Seen<T> &seen) {
  const int d = law.columns;
  const float *center = law.centers + b * d, *variances = law.variances + b * d;
  const float *basis = law.bases ? law.bases + (size_t)b * d * d : nullptr;
  for (int j = 0; j < d; j++) seen.shifted[j].v = tile.x[j].v - tile.alpha * T(center[j]);
  for (int j = 0; j < d; j++) seen.y[j].v = basis ? Vec<T>{} : seen.shifted[j].v;
  if (basis)
    for (int i = 0; i < d; i++) {
      Vec<T> s = seen.shifted[i].v;
      for (int j = 0; j < d; j++) seen.y[j].v += s * T(basis[i * d + j]);
    }
  Vec<T> squared = tile.alpha * tile.alpha, norm = {};
  F product = splat(1.0f);
  for (int j = 0; j < d; j++) {
    Vec<T> precision = T(1) / (squared * T(variances[j]) + tile.variance);
    Vec<T> scale = root(precision * T(0.72134752044448170));  // 1 / (2 ln 2)
    seen.precision[j].v = precision;
    seen.z[j].v = scale * seen.y[j].v;
    seen.e[j].v = scale * tile.alpha;
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

// Bounds of a block's log2 mass: above by its box, below by Jensen's inequality (see native.cpp).
INLINE void bounds(const Law &law, int b, const Seen<float> &seen, F &above, F &below) {
  const int d = law.columns;
  const float *low = &law.low[b * d], *high = &law.high[b * d], *mean = &law.mean[b * d], *spread = &law.spread[b * d];
  F outside = {}, around = {};
  for (int j = 0; j < d; j++) {
    F z = seen.z[j].v, e = seen.e[j].v;
    F off = most(most(z - e * high[j], e * low[j] - z), F{});
    F t = z - e * mean[j];
    outside += off * off;
    around += t * t + e * e * spread[j];
  }
  above = seen.norm + law.mass[b] - outside;
  below = seen.norm + law.mass[b] - around;
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
  Vec<T> reference = {};
  F mass = {}, laplacian = {}, error = {}, doubt = {};  // error: of logits; doubt: of masses, relative to the reference
  std::vector<Aligned<F>> mean, square, field, local;

  Jet(const Law &law, const Tile<T> &tile)
      : law(law), tile(tile), seen(law.columns), mean(law.columns), square(law.columns), field(law.columns),
        local(law.columns) {}

  // Add a block in the lanes where it counts; its mass is known to be at most 2^above.
  void add_block(int b, F above, I counts, bool grids) {
    const int d = law.columns;
    Sums<T> sums{reference - seen.norm, F{}, F{}, &mean[0].v, &square[0].v};
    F length = {};
    for (int j = 0; j < d; j++) {
      mean[j].v = square[j].v = F{};
      length += cast(seen.z[j].v) * cast(seen.z[j].v);
    }
    const bool expands = sizeof(T) == 4 && ORDER < 2 && law.expands[b];
    const Grid *grid = expands && grids && law.grids[b].bias.size() ? &law.grids[b] : nullptr;
    Rows rows{law.rows + (size_t)b * law.height * d, &law.bias[(size_t)b * law.height], nullptr, law.filled[b]};
    int road = DIFFERENCES;
    Vec<T> shift = {};
    if (expands) {
      shift = __builtin_convertvector(length, Vec<T>);
      rows.bias = &law.expanded[(size_t)b * law.height];
      const bool bounded = !any_less(splat(RAISED), above - cast(reference));
      road = PRODUCTS | (bounded ? BOUNDED : 0) | (grid ? GRID : 0);
      for (int j = 0; j < d; j++) seen.e[j].v *= T(2) * seen.z[j].v;
    }
    if (grid) {
      rows = {grid->rows.data(), grid->bias.data(), grid->weight.data(), (int)grid->bias.size()};
      const F wrong = 0.5f * (above + cast(seen.norm) + law.mass[b]) - cast(reference);  // see native.cpp
      doubt += counts ? law.share * exp2(least(wrong, splat(100.0f))) : F{};
    }
    sums.reference += shift;
    add<T, ORDER>(road, rows, d, expands ? &seen.e[0].v : &seen.z[0].v, &seen.e[0].v, sums);

    const F part = counts && sums.mass > 0.0f ? sums.mass : F{}, scale = exp2(-sums.raised);
    mass *= scale;
    doubt *= scale;
    const Vec<T> raised = __builtin_convertvector(sums.raised, Vec<T>);
    reference = raised > 0 ? sums.reference - shift + seen.norm : reference;
    const F inverse = 1.0f / positive(part), share = part / positive(mass + part), kept = 1.0f - share;
    mass += part;
    // Rounding of a logit |t|^2, t = z - e m: that of z, times t, and its own, if the columns' do not add up.
    const F squared = most(law.mass[b] - cast(reference - seen.norm) - log2(positive(part)), F{});
    error = kept * error + share * (root(squared * length) + squared) * float(6e-8 / std::sqrt(d));
    if (ORDER > 0) add_field(b, inverse, share, kept);
  }

  void add_field(int b, F inverse, F share, F kept) {
    const int d = law.columns;
    const F a = cast(tile.alpha), offset = cast(tile.offset);
    const float *variances = law.variances + b * d, *center = law.centers + b * d;
    const float *basis = law.bases ? law.bases + (size_t)b * d * d : nullptr;
    F own = {}, between = {};  // parts of the Laplacian
    for (int j = 0; j < d; j++) {
      const F precision = cast(seen.precision[j].v), middle = ORDER > 1 ? mean[j].v : mean[j].v * inverse;
      const F along = (cast(tile.slope) * variances[j] + cast(tile.constant)) * precision;
      local[j].v = along * cast(seen.y[j].v) + (offset - a * along) * middle;
      if (ORDER > 1) own += a * a * precision * precision * square[j].v * inverse - precision;
    }
    for (int i = 0; i < d; i++) {
      F f = basis ? F{} : local[i].v;
      if (basis)
        for (int j = 0; j < d; j++) f += local[j].v * basis[i * d + j];
      const F change = f + offset * center[i] - field[i].v;
      between += change * change;
      field[i].v += share * change;
    }
    laplacian = kept * laplacian + share * own + share * kept * between;
  }

  // Write the wanted lanes, and return those whose digits float did not keep.
  unsigned write(const Queries &q, const int *index, int count, const Out &out, unsigned wanted) const {
    const Vec<T> log_p = (reference + __builtin_convertvector(log2(positive(mass)), Vec<T>)) * T(0.69314718055994531);
    const F wrong = error + doubt / positive(mass);
    unsigned poor = 0;
    for (int l = 0; l < count; l++) {
      if (!(wanted >> l & 1)) continue;
      if (sizeof(T) == 4 && law.careful && !(wrong[l] < POOR)) poor |= 1u << l;
      const size_t i = index[l];
      float ill = 0;  // NaN where the query is not finite
      for (int j = 0; j < law.columns; j++) ill += 0 * q.x[i * law.columns + j];
      out.log_p[i] = (mass[l] > 0 ? (float)log_p[l] : -INFINITY) + ill;
      if (ORDER > 0)
        for (int j = 0; j < law.columns; j++) out.field[i * law.columns + j] = field[j].v[l] + ill;
      if (ORDER > 1) out.laplacian[i] = laplacian[l] + ill;
    }
    return poor;
  }
};

// What is known of a tile before its rows are looked at: bounds of every block's log2 mass, and the best one below.
struct Bounds {
  std::vector<Aligned<F>> above;
  F below = splat(-INFINITY);

  Bounds(const Law &law, const Tile<float> &tile) : above(law.blocks) {
    Seen<float> seen(law.columns);
    for (int b = 0; b < law.blocks; b++) {
      F low;
      look(law, b, tile, seen);
      bounds(law, b, seen, above[b].v, low);
      below = most(below, low);
    }
  }
};

// Write the jets of one tile's wanted lanes; return those that are to be computed with more care.
template <class T, int ORDER>
NOINLINE unsigned jet(const Law &law, const Queries &q, const int *index, int count, const Bounds &known,
                      const Out &out, unsigned wanted, bool grids) {
  Tile<T> tile(law.columns);
  load(law, q, index, count, tile);
  Jet<T, ORDER> jet(law, tile);
  jet.reference = __builtin_convertvector(known.below, Vec<T>);
  const F size = most(known.below, -known.below);  // of which float rounded both bounds
  const F threshold = known.below + law.negligible - (4e-7f * law.columns) * size;
  for (int b = 0; b < law.blocks; b++) {
    const F above = known.above[b].v;
    if (law.mass[b] < -1e29f || (law.skips && !any_less(threshold, above))) continue;
    look(law, b, tile, jet.seen);
    jet.add_block(b, above, law.skips ? threshold < above : F{} == F{}, grids);
  }
  return jet.write(q, index, count, out, wanted);
}

struct FlushToZero {  // tiny weights are nothing, and slow
#if LANES > 4
  unsigned mode = _mm_getcsr();
  FlushToZero() { _mm_setcsr(mode | 0x8040); }
  ~FlushToZero() { _mm_setcsr(mode); }
#endif
};

template <int ORDER>
void one_tile(const Law &law, const Queries &q, const int *index, int count, const Out &out) {
  FlushToZero flush;
  Tile<float> tile(law.columns);
  load(law, q, index, count, tile);
  const Bounds known(law, tile);
  unsigned poor = jet<float, ORDER>(law, q, index, count, known, out, ~0u, law.grids.size() > 0);
  if (poor && law.grids.size()) poor = jet<float, ORDER>(law, q, index, count, known, out, poor, false);
  if (poor) jet<double, ORDER>(law, q, index, count, known, out, poor, false);
}

void run(const Law &law, const Queries &q, const int *index, int count, const Out &out, int order) {
  if (order == 0) one_tile<0>(law, q, index, count, out);
  if (order == 1) one_tile<1>(law, q, index, count, out);
  if (order == 2) one_tile<2>(law, q, index, count, out);
}

// The block that each query is nearest to.
void nearest(const Law &law, const Queries &q, const int *index, int count, int *block) {
  Tile<float> tile(law.columns);
  Seen<float> seen(law.columns);
  load(law, q, index, count, tile);
  F best = splat(-INFINITY);
  I at = {};
  for (int b = 0; b < law.blocks; b++) {
    F high, low;
    look(law, b, tile, seen);
    bounds(law, b, seen, high, low);
    at = low > best ? b - I{} : at;
    best = low > best ? low : best;
  }
  for (int l = 0; l < count; l++) block[l] = at[l];
}

}  // namespace

#define TEXT(name) #name
#define NAME(target) TEXT(target)
extern const Target TARGET{NAME(TARGET), W, run, nearest};
