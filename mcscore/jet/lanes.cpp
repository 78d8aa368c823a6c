// One pass over a Gaussian mixture in blocks, for one instruction set: compiled with TARGET, its name, and LANES.
//
// W queries share a vector, one in each lane, and rows are broadcast to them. Everything is in units of log 2:
// with z = sqrt(lambda / (2 ln 2)) R^T (x - alpha c) and e = sqrt(lambda / (2 ln 2)) alpha, row m has the weight
//
//     2^(bias - |z - e m|^2),    bias = log2 w.
//
// Differences z - e m cancel nothing, where an expanded square does; it takes half the work, and serves blocks that are
// small beside the noise (law.expands): with 2 z e for z, and bias - |e m|^2, the weight is 2^(-|z|^2 + bias + z m). No lane looks at its neighbors: a query's
// jet is the same to the bit whoever shares its vector.

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

// 2^a for a <= 126; below -126 about 0. Relative error 2e-7, and rounding.
INLINE F exp2(F a) {
#if LANES == 16
  F f = (F)_mm512_reduce_ps((__m512)a, _MM_FROUND_TO_NEG_INF);  // a - floor(a)
#else
  a = most(a, splat(-126.0f));
  const F shift = splat(12582912.0f), shifted = (a - 0.5f) + shift;  // its last bits are round(a - 1/2)
  F f = a - (shifted - shift);
#endif
  F p = splat(0.00186713f);
  p = p * f + 0.00901703f;
  p = p * f + 0.05579991f;
  p = p * f + 0.24016445f;
  p = p * f + 0.69315131f;
  p = p * f + 1.0f;
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

// Sums over rows of one block, all by weight relative to 2^reference.
template <class T> struct Sums {
  Vec<T> reference;
  F mass, raised;  // by what the reference was raised
  F *mean, *square;  // sums of rows; of the second order, the rows' mean and the sum of their squared deviations
};

template <class T, int N> INLINE F greatest(const Vec<T> *logit, F *out) {
  F pairs[N];
  for (int g = 0; g < N; g++) pairs[g] = out[g] = cast(logit[g]);
  for (int step = 1; step < N; step *= 2)
    for (int g = 0; g + step < N; g += 2 * step) pairs[g] = most(pairs[g], pairs[g + step]);
  return pairs[0];
}

template <class T, int D, bool PRODUCTS, int N>
INLINE F logits(const float *row, const float *bias, int d, const Vec<T> *z, const Vec<T> *e, Vec<T> reference,
                F *out) {
  Vec<T> logit[N];
  for (int g = 0; g < N; g++) logit[g] = T(bias[g]) - reference;
  for (int j = 0; j < d; j++)
    for (int g = 0; g < N; g++)
      if (PRODUCTS) {
        logit[g] += z[j] * T(row[g * d + j]);
      } else {
        Vec<T> t = z[j] - e[j] * T(row[g * d + j]);
        logit[g] -= t * t;
      }
  return greatest<T, N>(logit, out);
}

template <class T, int D, int ORDER, bool PRODUCTS, int N>
INLINE void add_rows(const float *row, const float *bias, int columns, const Vec<T> *z, const Vec<T> *e,
                     Sums<T> &sums) {
  const int d = D ? D : columns;
  F weight[N], top = logits<T, D, PRODUCTS, N>(row, bias, d, z, e, sums.reference, weight);
  if (UNLIKELY(any_less(splat(RAISED), top))) {
    F up = top > RAISED ? top : F{}, scale = exp2(-up);
    sums.reference += __builtin_convertvector(up, Vec<T>);
    // Anew: digits were lost to a reference far below.
    top = logits<T, D, PRODUCTS, N>(row, bias, d, z, e, sums.reference, weight);
    sums.raised += up;
    sums.mass *= scale;
    if (ORDER > 0)
      for (int j = 0; j < d; j++) (ORDER > 1 ? sums.square : sums.mean)[j] *= scale;
  }
  if (PRODUCTS) {  // of a block small beside the noise no part is negligible
    for (int g = 0; g < N; g++) weight[g] = exp2(weight[g]);
  } else {
    if (!any_less(splat(NEGLIGIBLE), top)) return;
    for (int g = 0; g < N; g++) weight[g] = weight[g] > NEGLIGIBLE ? exp2(weight[g]) : F{};
  }
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

template <class T, int D, int ORDER, bool PRODUCTS>
NOINLINE void add_block(const float *row, const float *bias, int rows, int columns, const Vec<T> *z,
                        const Vec<T> *e, Sums<T> &given) {
  const int d = D ? D : columns;
  constexpr int K = D ? D : 1;
  Vec<T> own_z[K], own_e[K];  // of few columns everything stays in registers
  F own_mean[K] = {};
  Sums<T> sums{given.reference, given.mass, given.raised, D ? own_mean : given.mean, given.square};
  if (D) {
    for (int j = 0; j < D; j++) own_z[j] = z[j], own_e[j] = PRODUCTS ? z[j] : e[j];
    z = own_z, e = own_e;
  }
  int r = 0;
  for (; r + G <= rows; r += G) add_rows<T, D, ORDER, PRODUCTS, G>(row + r * d, bias + r, d, z, e, sums);
  for (; r < rows; r++) add_rows<T, D, ORDER, PRODUCTS, 1>(row + r * d, bias + r, d, z, e, sums);
  for (int j = 0; j < D; j++) given.mean[j] = own_mean[j];
  given.reference = sums.reference, given.mass = sums.mass, given.raised = sums.raised;
}

template <class T, int ORDER, bool PRODUCTS>
void add_any(const float *row, const float *bias, int rows, int d, const Vec<T> *z, const Vec<T> *e, Sums<T> &sums) {
  if constexpr (sizeof(T) == 4 && ORDER < 2) switch (d) {
#define CASE(D) case D: return add_block<T, D, ORDER, PRODUCTS>(row, bias, rows, d, z, e, sums);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
  }
  add_block<T, 0, ORDER, PRODUCTS>(row, bias, rows, d, z, e, sums);
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

// The jet of one tile, written for the wanted lanes; returns those in which float was not enough, none if T is double.
template <class T, int ORDER>
NOINLINE unsigned jet(const Law &law, const Queries &q, const int *index, int count, const float *above,
             const float *below, const Out &out, unsigned wanted) {
  const int d = law.columns;
  Tile<T> tile(d);
  Seen<T> seen(d);
  std::vector<Aligned<F>> mean(d), square(d), field(d), local(d);
  load(law, q, index, count, tile);
  F threshold = splat(-INFINITY), start = threshold;
  if (below) {
    std::memcpy(&start, below, sizeof start);
    F size = most(start, -start);  // float's rounding of both bounds
    threshold = start + law.negligible - (4e-7f * d) * size;
  }
  Vec<T> reference = {};
  F mass = {}, laplacian = {}, error = {};
  bool started = false;
  for (int b = 0; b < law.blocks; b++) {
    if (law.mass[b] < -1e29f) continue;
    F bound = {};
    if (above) {
      std::memcpy(&bound, above + (size_t)b * W, sizeof bound);
      if (!any_less(threshold, bound)) continue;
    }
    look(law, b, tile, seen);
    if (!started) {
      F high, low = start;
      if (!below) {
        Seen<float> rough(d);
        for (int j = 0; j < d; j++) rough.z[j].v = cast(seen.z[j].v), rough.e[j].v = cast(seen.e[j].v);
        rough.norm = cast(seen.norm);
        bounds(law, b, rough, high, low);
      }
      reference = __builtin_convertvector(low, Vec<T>);
      started = true;
    }
    Sums<T> sums{reference - seen.norm, F{}, F{}, &mean[0].v, &square[0].v};
    F length = {};
    for (int j = 0; j < d; j++) {
      mean[j].v = square[j].v = F{};
      length += cast(seen.z[j].v) * cast(seen.z[j].v);
    }
    const float *row = law.rows + (size_t)b * law.height * d;
    const float *bias = &law.bias[(size_t)b * law.height];
    const Vec<T> *z = &seen.z[0].v, *e = &seen.e[0].v;
    const bool expands = sizeof(T) == 4 && ORDER < 2 && law.expands[b];
    const Vec<T> shift = expands ? __builtin_convertvector(length, Vec<T>) : Vec<T>{};
    sums.reference += shift;
    if (expands) {
      for (int j = 0; j < d; j++) seen.e[j].v *= T(2) * seen.z[j].v;
      bias = &law.expanded[(size_t)b * law.height];
      add_any<T, ORDER, true>(row, bias, law.filled[b], d, e, nullptr, sums);
    } else {
      add_any<T, ORDER, false>(row, bias, law.filled[b], d, z, e, sums);
    }
    F part = sums.mass;
    if (above) part = threshold < bound ? part : F{};
    mass *= exp2(-sums.raised);
    const Vec<T> raised = __builtin_convertvector(sums.raised, Vec<T>);
    reference = raised > 0 ? sums.reference - shift + seen.norm : reference;
    F inverse = 1.0f / positive(part), total = mass + part;
    F share = part / positive(total), kept = 1.0f - share;
    // Rounding of a logit |t|^2, t = z - e m: that of z, times t, and its own, if the columns' do not add up.
    F squared = most(law.mass[b] - cast(reference - seen.norm) - log2(positive(part)), F{});
    F rounding = (root(squared * length) + squared) * float(6e-8 / std::sqrt(d));
    error = kept * error + share * rounding;
    mass = total;
    if (ORDER == 0) continue;
    F a = cast(tile.alpha), offset = cast(tile.offset), lap = {};
    const float *variances = law.variances + b * d, *center = law.centers + b * d;
    for (int j = 0; j < d; j++) {
      F precision = cast(seen.precision[j].v), middle = ORDER > 1 ? mean[j].v : mean[j].v * inverse;
      F along = (cast(tile.slope) * variances[j] + cast(tile.constant)) * precision;
      local[j].v = along * cast(seen.y[j].v) + (offset - a * along) * middle;
      if (ORDER > 1) {
        lap += a * a * precision * precision * square[j].v * inverse - precision;
      }
    }
    const float *basis = law.bases ? law.bases + (size_t)b * d * d : nullptr;
    F between = {};
    for (int i = 0; i < d; i++) {
      F f = basis ? F{} : local[i].v;
      if (basis) for (int j = 0; j < d; j++) f += local[j].v * basis[i * d + j];
      F change = f + offset * center[i] - field[i].v;
      between += change * change;
      field[i].v += share * change;
    }
    laplacian = kept * laplacian + share * lap + share * kept * between;
  }
  Vec<T> log_p = (reference + __builtin_convertvector(log2(positive(mass)), Vec<T>)) * T(0.69314718055994531);
  unsigned poor = 0;
  for (int l = 0; l < count; l++) {
    if (sizeof(T) == 4 && law.careful && !(error[l] < POOR)) poor |= 1u << l;
    if (!(wanted >> l & 1)) continue;
    const size_t i = index[l];
    float ill = 0;  // NaN where the query is not finite
    for (int j = 0; j < d; j++) ill += 0 * q.x[i * d + j];
    out.log_p[i] = (mass[l] > 0 ? (float)log_p[l] : -INFINITY) + ill;
    if (ORDER > 0) for (int j = 0; j < d; j++) out.field[i * d + j] = field[j].v[l] + ill;
    if (ORDER > 1) out.laplacian[i] = laplacian[l] + ill;
  }
  return poor;
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
  std::vector<float> above;
  F below = splat(-INFINITY);
  if (law.skips) {
    above.resize((size_t)law.blocks * W);
    Tile<float> tile(law.columns);
    Seen<float> seen(law.columns);
    load(law, q, index, count, tile);
    for (int b = 0; b < law.blocks; b++) {
      F high, low;
      look(law, b, tile, seen);
      bounds(law, b, seen, high, low);
      std::memcpy(&above[(size_t)b * W], &high, sizeof high);
      below = low > below ? low : below;
    }
  }
  const float *high = law.skips ? above.data() : nullptr, *low = law.skips ? (const float *)&below : nullptr;
  unsigned poor = jet<float, ORDER>(law, q, index, count, high, low, out, ~0u);
  if (poor) jet<double, ORDER>(law, q, index, count, high, low, out, poor);
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
