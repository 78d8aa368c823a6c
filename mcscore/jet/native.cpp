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

constexpr float ROUND = 160;  // |e m|^2 in log2: below, float's rounding of an expanded square is below 2e-5

void measure(Law &law, const float *log_weights, const Queries &queries, int b) {
  const int d = law.columns, height = law.height;
  const float *log_weight = log_weights + (size_t)b * height;
  float *bias = &law.bias[(size_t)b * height], top = -INFINITY;
  for (int r = 0; r < height; r++) {
    bias[r] = std::max(log_weight[r] * 1.44269504f, -1e30f);
    if (bias[r] > -1e29f) law.filled[b] = r + 1, top = std::max(top, bias[r]);
  }
  law.mass[b] = -1e30f;
  if (!law.filled[b]) return;
  std::vector<double> mean(d), square(d);
  float *low = &law.low[b * d], *high = &law.high[b * d];
  std::fill(low, low + d, INFINITY), std::fill(high, high + d, -INFINITY);
  double total = 0;
  float before = NAN, weight = 0;
  for (int r = 0; r < law.filled[b]; r++) {
    if (bias[r] < -1e29f) continue;
    if (bias[r] != before) weight = std::exp2(bias[r] - top), before = bias[r];
    const float *row = law.rows + ((size_t)b * height + r) * d;
    total += weight;
    for (int j = 0; j < d; j++) {
      low[j] = std::min(low[j], row[j]), high[j] = std::max(high[j], row[j]);
      mean[j] += weight * row[j], square[j] += weight * row[j] * row[j];
    }
  }
  law.mass[b] = top + (float)std::log2(total);
  for (int j = 0; j < d; j++) {
    mean[j] /= total;
    law.mean[b * d + j] = mean[j];
    law.spread[b * d + j] = std::max(square[j] / total - mean[j] * mean[j], 0.0);
  }
  if (!queries.shared) return;
  const float alpha = queries.alpha[0];
  std::vector<float> e(d);  // squared
  float radius = 0;
  for (int j = 0; j < d; j++) {
    e[j] = 0.72134752f * alpha * alpha / (alpha * alpha * law.variances[b * d + j] + queries.variance[0]);
    radius += e[j] * std::max(low[j] * low[j], high[j] * high[j]);
  }
  if (!(radius < ROUND)) return;
  law.expands[b] = true;
  for (int r = 0; r < law.filled[b]; r++) {
    const float *row = law.rows + ((size_t)b * height + r) * d;
    float square = 0;
    for (int j = 0; j < d; j++) square += e[j] * row[j] * row[j];
    law.expanded[(size_t)b * height + r] = bias[r] - square;
  }
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

using Array = xla::ffi::Buffer<xla::ffi::F32>;
using Result = xla::ffi::ResultBuffer<xla::ffi::F32>;

xla::ffi::Error stream(xla::ffi::ThreadPool pool, Array x, Array times, Array rows, Array log_weights, Array centers,
                       Array bases, Array variances, Result log_p, Result field, Result laplacian, int64_t order,
                       double share, bool careful, std::string_view name) {
  const Target *target = nullptr;
  for (const Target *t : targets())
    if (!target && (name == "native" || name == t->name)) target = t;
  if (!target) return xla::ffi::Error::InvalidArgument("this processor has no " + std::string(name));

  const auto shape = rows.dimensions();
  const int k = shape[0], r = shape[1], d = shape[2], n = x.dimensions()[0], m = times.dimensions()[1];
  if (n == 0) return xla::ffi::Error::Success();
  Law law{k, r, d, rows.typed_data(), centers.typed_data(), bases.dimensions()[0] ? bases.typed_data() : nullptr,
          variances.typed_data()};
  const float *time = times.typed_data();
  const Queries queries{n, x.typed_data(), time, time + m, time + 2 * m, time + 3 * m, time + 4 * m, m == 1};
  const size_t whole = (size_t)k * d;
  law.bias.resize((size_t)k * r), law.mass.resize(k), law.filled.resize(k);
  law.expanded.resize(queries.shared ? (size_t)k * r : 0), law.expands.resize(k);
  law.low.resize(whole), law.high.resize(whole), law.mean.resize(whole), law.spread.resize(whole);
  law.careful = careful;
  law.skips = share > 0 && k > 3;
  // The variance between far blocks, in the Laplacian, weighs small shares more.
  law.negligible = (order > 1 ? 2 : 1) * std::log2(share) - std::log2(k);
  const int some = std::max(1, 4096 / r);  // blocks
  in_parallel(pool, (k + some - 1) / some, [&](int64_t part) {
    for (int b = part * some; b < std::min<int64_t>(k, (part + 1) * some); b++)
      measure(law, log_weights.typed_data(), queries, b);
  });

  const Out out{log_p->typed_data(), field->typed_data(), laplacian->typed_data()};
  std::vector<int> index(n);
  std::iota(index.begin(), index.end(), 0);
  const int lanes = target->lanes, tiles = (n + lanes - 1) / lanes;
  const auto size = [=](int64_t tile) { return std::min<int>(lanes, n - tile * lanes); };
  if (law.skips && tiles > 1) {  // neighbors side by side, so that they leave out the same blocks
    std::vector<int> block(n);
    in_parallel(pool, tiles, [&](int64_t tile) {
      target->nearest(law, queries, &index[tile * lanes], size(tile), &block[tile * lanes]);
    });
    std::stable_sort(index.begin(), index.end(), [&](int i, int j) { return block[i] < block[j]; });
  }
  in_parallel(pool, tiles, [&](int64_t tile) {
    target->jet(law, queries, &index[tile * lanes], size(tile), out, order);
  });
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
                                  .Ret<Array>()  // vector field (b, d), or (0, d)
                                  .Ret<Array>()  // Laplacian (b), or (0)
                                  .Attr<int64_t>("order")
                                  .Attr<double>("share")
                                  .Attr<bool>("careful")  // double where float loses digits
                                  .Attr<std::string_view>("target"));

// The names of what this processor can do, best first, separated by spaces.
const char *mcscore_targets() {
  static const std::string names = [] {
    std::string all;
    for (const Target *t : targets()) all += (all.empty() ? "" : " ") + std::string(t->name);
    return all;
  }();
  return names.c_str();
}
}
