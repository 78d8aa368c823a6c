// The jet of a Gaussian mixture in blocks on CPUs: what jet/streaming.py computes, in one pass over its rows.
//
// A block is left out for a query where its share of the density is provably below `share` / (number of blocks).
// With B the box of its rows m (weights w, total W, mean mu and variances s along the basis), for every row
//
//     |z - e m|^2 >= sum_j max(0, z_j - e_j max B_j, e_j min B_j - z_j)^2    (above: W times the best of the box)
//
// and by Jensen's inequality, log being concave,
//
//     log2 sum_i (w_i / W) 2^-|z - e m_i|^2 >= -sum_i (w_i / W) |z - e m_i|^2 = -|z - e mu|^2 - e^2 s    (below).
//
// The largest of the bounds below is less than the density's logarithm, so what is left out is at most `share` of it.
//
// Rows of a block that is left in are left out in the same way by sets of LEAF neighbors.
//
// Where the noise is wide beside a block of few columns, its rows are replaced by a grid: Chebyshev's points of its
// box, with the weights sum_i w_i l(m_i), l Lagrange's polynomials (a fast Gauss transform). Along one column, in units
// in which the kernel is exp(-x^2), p points and a box of half-width r at the distance x are wrong by at most
// 2 (r/2)^p / p! times the p-th derivative, H_p(x) exp(-x^2), and |H_p(x)| <= 1.0865 2^(p/2) sqrt(p!) exp(x^2 / 2)
// (Cramer): by
//
//     2.173 (r / sqrt(2))^p / sqrt(p!) exp(-x^2 / 2) of the block's mass.
//
// Of rows times the kernel, whose sums the field takes, the p-th derivative is u f^(p) + p f^(p-1), u from the box's
// middle: the error is at most r times that of p points and r / 2 times that of p - 1. So p - 1 is the least for which
// the factor is below `share`. (Two points at least: one would lose where the rows' mean is.) Columns are interpolated
// one after the other, and each multiplies the errors before it by at most Lebesgue's constant, below 3 for MOST
// points. The errors are summed over blocks for every query; where the sum is not far below the density, the query is
// computed from the rows.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "native.h"
#include "xla/ffi/api/ffi.h"

namespace {

constexpr int MOST = 16;  // points of a grid along a column
constexpr float ROUND = 80;  // |e m|^2 in log2, by the root of d: below, an expanded square is rounded by less than 2e-5

// Sums w_i T_a(u_i1) T_b(u_i2) ... over rows in the box, T Chebyshev's polynomials, u in [-1, 1].
std::vector<double> chebyshev_moments(const float *row, const float *weight, int rows, int d, const float *middle,
                                      const float *inverse, const int *points) {
  constexpr int R = 16;  // rows side by side
  const int size = points[0] * points[1] * points[2];
  std::vector<float> sums((size_t)size * R), columns((size_t)GRID_COLUMNS * MOST * R, 1.0f);
  for (int start = 0; start < rows; start += R) {
    const int some = std::min(R, rows - start);
    float w[R] = {};
    for (int r = 0; r < some; r++) w[r] = weight[start + r];
    for (int j = 0; j < d; j++) {
      float *t = &columns[(size_t)j * MOST * R];
      for (int r = 0; r < some; r++) t[R + r] = (row[(start + r) * d + j] - middle[j]) * inverse[j];
      for (int k = 2; k < points[j]; k++)
        for (int r = 0; r < R; r++) t[k * R + r] = 2 * t[R + r] * t[(k - 1) * R + r] - t[(k - 2) * R + r];
    }
    float *sum = sums.data();
    for (int a = 0; a < points[0]; a++)
      for (int b = 0; b < points[1]; b++) {
        float part[R];
        for (int r = 0; r < R; r++) part[r] = w[r] * columns[a * R + r] * columns[(MOST + b) * R + r];
        for (int c = 0; c < points[2]; c++, sum += R)
          for (int r = 0; r < R; r++) sum[r] += part[r] * columns[(2 * MOST + c) * R + r];
      }
  }
  std::vector<double> moments(size);
  for (int i = 0; i < size; i++) moments[i] = std::accumulate(&sums[i * R], &sums[i * R] + R, 0.0);
  return moments;
}

// The grid of a block; none if it has not less than half as many points as the block has rows.
Grid grid_of(const Law &law, int b, const float *weight, float top, const float *squared_scale) {
  const int d = law.columns;
  const double share = law.share / (d * std::pow(3.0, d - 1));
  const float *low = &law.whole.low[b * d], *high = &law.whole.high[b * d];
  int points[GRID_COLUMNS] = {1, 1, 1}, size = 1;
  float middle[GRID_COLUMNS], half[GRID_COLUMNS], inverse[GRID_COLUMNS];
  for (int j = 0; j < d; j++) {
    middle[j] = (low[j] + high[j]) / 2, half[j] = (high[j] - low[j]) / 2;
    inverse[j] = half[j] > 0 ? 1 / half[j] : 0;
    const double r = half[j] * std::sqrt(squared_scale[j] * 0.69314718 / 2);
    double wrong = 2.173;
    for (int p = 1; wrong > share && points[j] < MOST; p++) wrong *= r / std::sqrt(double(p)), points[j]++;
    if (half[j] == 0) points[j] = 1;
    size *= points[j];
    if (wrong > share || 2 * size > law.filled[b]) return {};
  }
  const float *row = law.rows + (size_t)b * law.height * d;
  std::vector<double> values = chebyshev_moments(row, weight, law.filled[b], d, middle, inverse, points);
  double at[GRID_COLUMNS][MOST];
  int after = size;  // from moments to values at the points, column by column
  for (int j = 0; j < d; j++) {
    const int p = points[j];
    double matrix[MOST][MOST];
    for (int a = 0; a < p; a++) {
      const double angle = 3.14159265358979 * (a + 0.5) / p;
      at[j][a] = middle[j] + half[j] * std::cos(angle);
      for (int k = 0; k < p; k++) matrix[a][k] = (k ? 2 : 1) * std::cos(k * angle) / p;
    }
    after /= p;
    for (int start = 0; start < size; start += after * p)
      for (int i = start; i < start + after; i++) {
        double one[MOST] = {};
        for (int a = 0; a < p; a++)
          for (int k = 0; k < p; k++) one[a] += matrix[a][k] * values[i + k * after];
        for (int a = 0; a < p; a++) values[i + a * after] = one[a];
      }
  }
  Grid grid{std::vector<float>((size_t)size * d), std::vector<float>(size), std::vector<float>(size)};
  for (int i = 0; i < size; i++) {
    double square = 0;
    for (int j = d - 1, rest = i; j >= 0; rest /= points[j--]) {
      const double m = at[j][rest % points[j]];
      grid.rows[i * d + j] = m;
      square += squared_scale[j] * m * m;
    }
    grid.bias[i] = top - square;
    grid.weight[i] = values[i];
  }
  return grid;
}

// Box, mean and variances of some rows, whose weights are relative to 2^top.
void measure_box(Boxes &boxes, size_t i, int d, const float *row, const float *weight, int rows, float top) {
  std::vector<double> sum(d), square(d);
  float *low = &boxes.low[i * d], *high = &boxes.high[i * d];
  std::fill(low, low + d, INFINITY), std::fill(high, high + d, -INFINITY);
  double total = 0;
  for (int r = 0; r < rows; r++, row += d) {
    if (!(weight[r] > 0)) continue;
    total += weight[r];
    for (int j = 0; j < d; j++) {
      low[j] = std::min(low[j], row[j]), high[j] = std::max(high[j], row[j]);
      sum[j] += weight[r] * row[j], square[j] += weight[r] * row[j] * row[j];
    }
  }
  boxes.mass[i] = total > 0 ? top + (float)std::log2(total) : -1e30f;
  for (int j = 0; j < d && total > 0; j++) {
    const double mean = sum[j] / total;
    boxes.mean[i * d + j] = mean;
    boxes.spread[i * d + j] = std::max(square[j] / total - mean * mean, 0.0);
  }
}

void measure(Law &law, const float *log_weights, const Queries &queries, int b) {
  const int d = law.columns, height = law.height;
  const float *log_weight = log_weights + (size_t)b * height, *rows = law.rows + (size_t)b * height * d;
  float *bias = &law.bias[(size_t)b * height], top = -1e30f;
  for (int r = 0; r < height; r++) {
    bias[r] = std::max(log_weight[r] * 1.44269504f, -1e30f);
    if (bias[r] > -1e29f) law.filled[b] = r + 1, top = std::max(top, bias[r]);
  }
  const int filled = law.filled[b];
  std::vector<float> weight(height), scale(d);
  for (int r = 0; r < filled; r++)
    weight[r] = r && bias[r] == bias[r - 1] ? weight[r - 1] : std::exp2(bias[r] - top);
  measure_box(law.whole, b, d, rows, weight.data(), filled, top);
  if (law.skips)
    for (int l = 0; l < law.leaves; l++) {
      const int r = l * LEAF, some = std::max(0, std::min(LEAF, filled - r));
      measure_box(law.leaf, (size_t)b * law.leaves + l, d, rows + (size_t)r * d, &weight[r], some, top);
    }
  if (!queries.shared) return;
  const double alpha = queries.alpha[0];
  law.norm[b] = -1.3257480647361593 * d;  // log2(2 pi) / 2
  for (int j = 0; j < d; j++) {
    const bool given = j >= law.diffused;
    const double squared = given ? 1 : alpha * alpha, noise = given ? 0 : queries.variance[0];
    const double precision = 1 / (squared * law.variances[b * d + j] + noise);
    law.scale[b * d + j] = std::sqrt(0.72134752044448170 * precision);  // 1 / (2 ln 2)
    law.norm[b] += std::log2(precision) / 2;
    scale[j] = 0.72134752f * squared * precision;
  }
  if (!filled) return;
  for (int r = 0; r < filled; r++) {
    float length = 0;
    for (int j = 0; j < d; j++) length += scale[j] * rows[r * d + j] * rows[r * d + j];
    law.expanded[(size_t)b * height + r] = bias[r] - length;
    if (bias[r] > -1e29f) law.radius[b] = std::max(law.radius[b], length);
  }
  law.expands[b] = law.radius[b] < ROUND * std::sqrt((float)d);
  if (law.expands[b] && law.grids.size()) law.grids[b] = grid_of(law, b, weight.data(), top, scale.data());
}

std::vector<const Target *> targets() {  // what this processor can do, the best first
  std::vector<const Target *> all;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) all.push_back(&avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all.push_back(&avx2);
#else
  all.push_back(&generic);
#endif
  return all;
}

// Parts of a piece of work, taken by whichever thread is free; the caller takes part and waits for all.
template <class Work>
void in_parallel(xla::ffi::ThreadPool &pool, int64_t parts, Work work) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto state = std::make_shared<State>();
  auto take = [state, parts, work] {  // a thread that comes late finds nothing, and touches nothing
    for (int64_t i; (i = state->next++) < parts;) {
      work(i);
      if (++state->done == parts) {
        std::lock_guard<std::mutex> lock(state->mutex);
        state->all_done.notify_all();
      }
    }
  };
  for (int64_t t = 1; t < std::min<int64_t>(pool.num_threads(), parts); t++) pool.Schedule(std::function<void()>(take));
  take();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == parts; });
}

// Whether to leave out leaves pays: tried on a few tiles of neighbors among the rows, with noise. The queries are not
// asked, so that none changes another's digits.
bool pays(const Law &law, const Queries &queries, const Target &target) {
  constexpr int TILES = 8, LANES = 16;
  constexpr float LOOKS = 32;  // rows, about, whose work a look at a block is
  const int d = law.columns, total = law.blocks * law.leaves;
  double dense = 0, sparse = 0;
  for (int b = 0; b < law.blocks; b++) dense += law.points(b);
  uint32_t bits = 1;
  int tiles = 0;
  for (int tile = 0; tile < TILES; tile++) {
    const int leaf = (int64_t)total * tile / TILES, b = leaf / law.leaves, filled = law.filled[b];
    const float *basis = law.bases ? law.bases + (size_t)b * d * d : nullptr;
    std::vector<float> x(LANES * d);
    std::vector<int> index(LANES);
    if (!filled) continue;
    for (int l = 0; l < LANES; l++) {
      const float *row = law.rows + ((size_t)b * law.height + (leaf % law.leaves * LEAF + 4 * l) % filled) * d;
      index[l] = l;
      for (int i = 0; i < d; i++) {
        float at = basis ? 0 : row[i];
        for (int j = 0; basis && j < d; j++) at += basis[i * d + j] * row[j];
        bits = 1664525 * bits + 1013904223;
        const float noise = std::sqrt(queries.variance[0]) * (bits >> 31 ? 1 : -1);
        x[l * d + i] = queries.alpha[0] * (law.centers[b * d + i] + at) + noise;
      }
    }
    Queries tried = queries;
    tried.x = x.data();
    for (int l = 0; l < LANES; l += target.lanes)
      sparse += target.counted(law, tried, &index[l], target.lanes) * target.lanes / LANES;
    tiles++;
  }
  return tiles && sparse / tiles + LOOKS * law.blocks < 0.9 * dense;
}

// `index` in the order of `place`, of which there are `places`; what is equal keeps its order.
std::vector<int> sorted(const std::vector<int> &index, const std::vector<int> &place, int places) {
  std::vector<int> start(places + 1), out(index.size());
  for (int p : place) start[p + 1]++;
  std::partial_sum(start.begin(), start.end(), start.begin());
  for (int i : index) out[start[place[i]]++] = i;
  return out;
}

using Array = xla::ffi::Buffer<xla::ffi::F32>;
using Result = xla::ffi::ResultBuffer<xla::ffi::F32>;

xla::ffi::Error stream(xla::ffi::ThreadPool pool, Array x, Array times, Array rows, Array log_weights, Array centers,
                       Array bases, Array variances, Result log_p, Result field, Result laplacian, int64_t order,
                       int64_t given, double share, bool careful, std::string_view name) {
  const Target *target = nullptr;
  for (const Target *t : targets())
    if (!target && (name == "native" || name == t->name)) target = t;
  if (!target) return xla::ffi::Error::InvalidArgument("this processor has no " + std::string(name));

  const auto shape = rows.dimensions();
  const int k = shape[0], r = shape[1], d = shape[2], n = x.dimensions()[0], m = times.dimensions()[1];
  if (n == 0) return xla::ffi::Error::Success();
  Law law{k, r, d, d - (int)given, rows.typed_data(), centers.typed_data(), bases.dimensions()[0] ? bases.typed_data() : nullptr,
          variances.typed_data()};
  const float *time = times.typed_data();
  const Queries queries{n, x.typed_data(), time, time + m, time + 2 * m, time + 3 * m, time + 4 * m, m == 1};
  law.bias.resize((size_t)k * r), law.filled.resize(k), law.expands.resize(k);
  if (queries.shared) {
    law.expanded.resize((size_t)k * r), law.radius.resize(k);
    law.scale.resize((size_t)k * d), law.norm.resize(k);
  }
  law.careful = careful;
  law.skips = share > 0;
  law.leaves = (r + LEAF - 1) / LEAF;
  law.whole.resize(k, d), law.leaf.resize(law.skips ? (size_t)k * law.leaves : 0, d);
  law.share = share;
  if (careful && share > 0 && queries.shared && order < 2 && d <= GRID_COLUMNS) law.grids.resize(k);
  // The variance between far blocks, in the Laplacian, weighs small shares more.
  const double log_share = (order > 1 ? 2 : 1) * std::log2(share);
  law.negligible = log_share - std::log2((double)k * law.leaves);
  law.tiny = std::max(-45.0, log_share - std::log2((double)k * r));
  const int some = std::max(1, 4096 / r);  // blocks
  in_parallel(pool, (k + some - 1) / some, [&](int64_t part) {
    for (int b = part * some; b < std::min<int64_t>(k, (part + 1) * some); b++)
      measure(law, log_weights.typed_data(), queries, b);
  });

  const Out out{log_p->typed_data(), field->typed_data(), laplacian->typed_data()};
  const int lanes = target->lanes, tiles = (n + lanes - 1) / lanes;
  std::vector<int> index(n);
  std::iota(index.begin(), index.end(), 0);
  std::vector<int> place(n);  // leaves
  if (law.skips && queries.shared && !given) law.skips = pays(law, queries, *target);
  for (bool leaves : {false, true}) {  // neighbors side by side, so that they leave out the same rows
    if (!law.skips || tiles == 1) break;
    in_parallel(pool, tiles, [&](int64_t tile) {
      const int *some = &index[tile * lanes], count = std::min<int>(lanes, n - tile * lanes);
      int found[16];
      if (leaves) for (int l = 0; l < count; l++) found[l] = place[some[l]] / law.leaves;
      target->nearest(law, queries, some, count, found, leaves);
      for (int l = 0; l < count; l++) place[some[l]] = leaves ? found[l] : found[l] * law.leaves;
    });
    index = sorted(index, place, k * law.leaves);
  }
  std::vector<char> poor(n);
  for (Care care : {GRIDS, ROWS, DOUBLES}) {  // what is poor is done again, in tiles of its own
    if (care == GRIDS && law.grids.empty()) continue;
    const int some = index.size(), tiles = (some + lanes - 1) / lanes;
    const int together = std::clamp<int>(tiles / (8 * std::max<int64_t>(1, pool.num_threads())), 1, 16);
    in_parallel(pool, (tiles + together - 1) / together, [&](int64_t part) {
      const int start = part * together * lanes;
      target->jet(law, queries, &index[start], std::min(together * lanes, some - start), out, order, care, poor.data());
    });
    const auto middle = std::remove_if(index.begin(), index.end(), [&](int i) { return !poor[i]; });
    index.erase(middle, index.end());
  }
  return xla::ffi::Error::Success();
}

}  // namespace

extern "C" {

XLA_FFI_DEFINE_HANDLER_SYMBOL(mcscore_stream, stream,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<Array>()  // queries (b, d)
                                  .Arg<Array>()  // alpha, variance, slope, constant, offset (5, 1 or b)
                                  .Arg<Array>()  // rows (k, r, d)
                                  .Arg<Array>()  // log weights (k, r)
                                  .Arg<Array>()  // centers (k, d)
                                  .Arg<Array>()  // bases (k, d, d), or (0, d, d) for the identity
                                  .Arg<Array>()  // variances (k, d)
                                  .Ret<Array>()  // log density (b)
                                  .Ret<Array>()  // vector field (b, d - given), or (0, d - given)
                                  .Ret<Array>()  // Laplacian (b), or (0)
                                  .Attr<int64_t>("order")
                                  .Attr<int64_t>("given")  // columns at the end of the queries
                                  .Attr<double>("share")
                                  .Attr<bool>("careful")  // double where float loses digits
                                  .Attr<std::string_view>("target"));

double mcscore_loop(int columns, int repeats) { return targets()[0]->loop(columns, repeats); }

// The names of what this processor can do, best first, separated by spaces.
// The version of XLA's interface that this was built with: another one's handlers stop the whole backend.
int mcscore_interface() { return 1000 * XLA_FFI_API_MAJOR + XLA_FFI_API_MINOR; }

const char *mcscore_targets() {
  static const std::string names = [] {
    std::string all;
    for (const Target *t : targets()) all += (all.empty() ? "" : " ") + std::string(t->name);
    return all;
  }();
  return names.c_str();
}
}
