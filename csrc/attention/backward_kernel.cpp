// Attention backward of one tile of queries, compiled once per instruction set.
//
// Recomputed from q, k, v and the log-sum-exp; with g the gradient of out, all over the pairs that
// the forward met (Dao, arXiv 2307.08691, with queries in the lanes as in the forward):
//   p = 2^(s - lse), dp = V g, ds = p (dp - delta), delta = sum_d g out - grad_lse,
//   dV += p g, dK += scale ds q, dq = scale ds K; the bias gets ds.

#include "attention/arguments.h"
#include "attention/bound.h"
#include "attention/slope.h"
#include "attention/tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

std::int64_t padded(std::int64_t depth) { return (depth + kLanes - 1) / kLanes * kLanes; }

constexpr std::int64_t kWidest = kColumns * kLanes;
constexpr float kFaintestRow = -1e30f;

struct Scratch {
  float *rows, *others, *s, *ds, *bias, *column, *q, *g, *dq, *q_rows, *g_rows, *q_plain;

  static std::int64_t size(std::int64_t depth) {
    return kQueryTile * (6 * depth + 2 * padded(depth)) + 3 * kMostKeys * kWidest + kMostKeys;
  }

  Scratch(float* at, std::int64_t depth) {
    rows = at;
    others = rows + kQueryTile * depth;
    q = others + kQueryTile * depth;
    g = q + kQueryTile * depth;
    dq = g + kQueryTile * depth;
    q_rows = dq + kQueryTile * depth;
    g_rows = q_rows + kQueryTile * padded(depth);
    q_plain = g_rows + kQueryTile * padded(depth);
    s = q_plain + kQueryTile * depth;
    ds = s + kMostKeys * kWidest;
    bias = ds + kMostKeys * kWidest;
    column = bias + kMostKeys * kWidest;
  }
};

// Where a tile's gradients of keys, values and bias are added up.
struct Sums {
  float *keys, *values;  // (n, padded)
  GradBias bias;
};

// to (rows, D) += a (rows, count) b (count, D), all of D.
inline void add_product(Matrix a, std::int64_t rows, const float* b, std::int64_t count,
                        std::int64_t width, float* to) {
  std::int64_t d = 0;
  for (; d + kWidest <= width; d += kWidest)
    multiply_add<kColumns>(a, rows, b + d, width, count, to + d, width);
  for (; d < width; d += kLanes) multiply_add<1>(a, rows, b + d, width, count, to + d, width);
}

template <int C>
struct Walk {
  static constexpr std::int64_t kWidth = Strip<C>::kWidth;

  Strip<C> strip;
  float *q, *g, *dq;       // (D, strip): a q, g, and the sum of dq
  float *q_plain;          // (D, strip): q, where the slope's gradient is wanted
  float *q_rows, *g_rows;  // (strip, padded): scale q, g
  Floats lse[C];           // in base 2; in lanes without a query so large that p is 0
  Floats delta[C];
  Floats due[C];  // grad_lse
  SlopeSums<C> slope;
  KeyRange met;
  Ledger<C> ledger;

  void start(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query,
             const AttentionBackward& result, const Scratch& scratch, std::int64_t done,
             bool want_slope) {
    const Attention& call = *head.call;
    const std::int64_t depth = call.head_dim, width = padded(depth);
    strip.start(head, first_query, last_query);
    q = scratch.q + done * depth, g = scratch.g + done * depth, dq = scratch.dq + done * depth;
    q_rows = scratch.q_rows + done * width, g_rows = scratch.g_rows + done * width;
    const std::int64_t token = head.first + strip.first;
    const auto read = [&](const Rows3& from, float* to) {
      read_rows(from, call.dtype, token, head.head, strip.count, depth, to);
    };
    const auto pad = [&](const float* rows, float factor, float* to) {
      for (std::int64_t i = 0; i < strip.count; ++i) {
        for (std::int64_t d = 0; d < depth; ++d) to[i * width + d] = factor * rows[i * depth + d];
        for (std::int64_t d = depth; d < width; ++d) to[i * width + d] = 0;
      }
    };
    read(call.q, scratch.rows);
    turn(scratch.rows, strip.count, depth, kWidth, call.scale * kLog2e, q);
    pad(scratch.rows, call.scale, q_rows);
    q_plain = scratch.q_plain + done * depth;
    if (want_slope) {
      turn(scratch.rows, strip.count, depth, kWidth, 1, q_plain);
      slope.start();
    }
    read(result.grad_out, scratch.rows);
    turn(scratch.rows, strip.count, depth, kWidth, 1, g);
    pad(scratch.rows, 1, g_rows);
    read(result.out, scratch.others);
    for (int c = 0; c < C; ++c) {
      lse[c] = splat(3e38f);
      delta[c] = due[c] = Floats{};
    }
    for (std::int64_t i = 0; i < strip.count; ++i) {
      const std::int64_t place = (token + i) * call.n_heads + head.head;
      double along = 0;
      for (std::int64_t d = 0; d < depth; ++d)
        along += static_cast<double>(scratch.rows[i * depth + d]) * scratch.others[i * depth + d];
      const float grad_lse = result.grad_lse ? result.grad_lse[place] : 0.0f;
      delta[i / kLanes][i % kLanes] = static_cast<float>(along - grad_lse);
      due[i / kLanes][i % kLanes] = grad_lse;
      // A row whose every key a dense bias pushed that far down has weights only by what rounding
      // left of its scores: no gradient comes from it.
      const float total = result.lse[place];
      lse[i / kLanes][i % kLanes] = total < kFaintestRow ? 3e38f : total * kLog2e;
    }
    for (std::int64_t i = 0; i < depth * kWidth; ++i) dq[i] = 0;
    met = result.ranges[token * call.n_heads + head.head];
    // Whatever it says, nothing beyond the sequence is read.
    if (met.first < 0) met.first = 0;
    if (met.last > head.n) met.last = static_cast<std::int32_t>(head.n);
    if (head.skips) ledger.start(head, strip.count);
  }

  void meet(const AttentionHead& head, std::int64_t first, std::int64_t last,
            const Scratch& scratch, const Sums& sums) {
    if (first < met.first || last > met.last) return;
    const Placement place = placement(head, strip, first, last);
    if (place.side == Side::none) return;
    const std::int64_t depth = head.call->head_dim, width = padded(depth), count = last - first;
    const float *k = head.keys + first * depth, *v = head.keys + (head.n + first) * depth;
    Floats row[C] = {}, top[C];
    if (place.uniform) {
      uniform_bias(head, strip, place.side, first, last, scratch.column, row);
      scores_of<C, false>(k, q, depth, count, scratch.column, scratch.s, top);
    } else {
      pair_bias(head, strip, first, last, scratch.bias);
      scores_of<C, true>(k, q, depth, count, scratch.bias, scratch.s, top);
    }
    const bool may_drop = head.skips && place.side != Side::both;
    for (int c = 0; c < C; ++c) top[c] += row[c] + mass_of(count);
    if (may_drop && ledger.take_power(top, lse)) return;

    Floats share[C] = {};
    for (std::int64_t j = 0; j < count; ++j)
      for (int c = 0; c < C; ++c) {
        float* at = scratch.s + j * kWidth + c * kLanes;
        const Floats p = weight_of(load(at) - (lse[c] - row[c]));
        store(at, p);
        share[c] += p;
      }
    if (may_drop && ledger.take(share)) return;
    if (sums.bias.slope)
      slope.meet(head, strip, first, count, k, v, q_plain, g, lse, delta, scratch.ds);
    else
      score_gradients(v, depth, count, scratch);
    add_product({scratch.s, kWidth, 1}, count, g_rows, strip.count, width, sums.values + first * width);
    add_product({scratch.ds, kWidth, 1}, count, q_rows, strip.count, width, sums.keys + first * width);
    multiply_add<C>({k, 1, depth}, depth, scratch.ds, kWidth, count, dq, kWidth);
    if (sums.bias.line) add_line(head, first, count, scratch.ds, sums.bias);
  }

  // ds = p (V g - delta).
  void score_gradients(const float* v, std::int64_t depth, std::int64_t count,
                       const Scratch& scratch) {
    for_rows(count, [&](std::int64_t row, auto n) {
      constexpr int R = decltype(n)::count;
      Floats acc[R][C] = {};
      multiply_in_runs<R, C>({v + row * depth, depth, 1}, g, kWidth, depth,
                             scratch.ds + row * kWidth, kWidth, acc);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
          const std::int64_t at = (row + r) * kWidth + c * kLanes;
          store(scratch.ds + at, load(scratch.s + at) * (acc[r][c] - delta[c]));
        }
    });
  }

  void add_line(const AttentionHead& head, std::int64_t first, std::int64_t count, const float* ds,
                const GradBias& bias) {
    const float* at = head.call->positions + head.first;
    const auto reach = static_cast<float>(bias.reach);
    for (std::int64_t j = 0; j < count; ++j)
      for (std::int64_t i = 0; i < strip.count; ++i) {
        float x = at[strip.first + i] - at[first + j];
        x = x > reach ? reach : x < -reach ? -reach : x;
        bias.line[static_cast<std::int64_t>(x)] += static_cast<double>(ds[j * kWidth + i]);
      }
  }

  void finish(const AttentionHead& head, const AttentionBackward& result, const Scratch& scratch) {
    const std::int64_t depth = head.call->head_dim;
    for (std::int64_t i = 0; i < depth * kWidth; ++i) dq[i] *= head.call->scale;
    transpose(dq, depth, strip.count, kWidth, scratch.rows, depth);
    put_rows(head, strip.first, strip.count, scratch.rows, depth, result.grad_q);
  }
};

void backward_tile(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query,
                   const AttentionBackward& result, float* grad_keys, const GradBias& bias,
                   float* memory) {
  const std::int64_t depth = head.call->head_dim;
  const Scratch scratch(memory, depth);
  const Sums sums{grad_keys, grad_keys + head.n * padded(depth), bias};
  Tile<Walk> tile;
  tile.start(first_query, last_query, [&](auto& walk, std::int64_t at) {
    walk.start(head, at, last_query, result, scratch, at - first_query, bias.slope != nullptr);
  });
  std::int64_t first = head.n, last = 0;
  tile.each([&](auto& walk) {
    first = walk.met.first < first ? walk.met.first : first;
    last = walk.met.last > last ? walk.met.last : last;
  });
  const std::int64_t block = key_block(*head.call);
  for (; first < last; first += block) {
    const std::int64_t end = first + block < head.n ? first + block : head.n;
    tile.each([&](auto& walk) { walk.meet(head, first, end, scratch, sums); });
  }
  tile.each([&](auto& walk) {
    if (bias.slope) *bias.slope += walk.slope.total(walk.strip.count, walk.due);
    walk.finish(head, result, scratch);
  });
}

void write_rows(const AttentionHead& head, std::int64_t first, std::int64_t last, const float* from,
                void* to) {
  put_rows(head, first, last - first, from, padded(head.call->head_dim), to);
}

void prepare(const AttentionHead& head) {
  const Attention& call = *head.call;
  const std::int64_t depth = call.head_dim;
  read_rows(call.k, call.dtype, head.first, head.head, head.n, depth, head.keys);
  read_rows(call.v, call.dtype, head.first, head.head, head.n, depth, head.keys + head.n * depth);
}

std::int64_t scratch_size(std::int64_t head_dim) { return Scratch::size(head_dim); }

}  // namespace

extern const AttentionBackwardKernels attention_backward_kernels;
const AttentionBackwardKernels attention_backward_kernels{scratch_size, padded, prepare,
                                                          backward_tile, write_rows};

}  // namespace PYENC_ISA
}  // namespace pyenc
