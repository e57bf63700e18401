// What the rule of attention/bound.h knows of a head's keys: their blocks, centres, and how far from
// them keys lie. In bfloat16 on matrix units others make it (attention/amx_bound.h).
#pragma once

#include <cmath>

#include "attention/amx_layout.h"
#include "attention/tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

inline std::int64_t blocks_of(const AttentionHead& head) {
  const std::int64_t block = key_block(head);
  return (head.n + block - 1) / block;
}

// Floats that a centre of keys takes; on matrix units it is pairs (attention/amx_bound.h).
#ifdef PYENC_AMX
inline std::int64_t centre_size(const Attention& call) {
  return call.dtype == Dtype::bf16 ? pair_tiles(call.head_dim) * kTile : call.head_dim;
}
#else
inline std::int64_t centre_size(const Attention& call) { return call.head_dim; }
#endif

// The bounds of a head's keys, one array of floats.
struct KeyBounds {
  float* center;        // (D,) the mean key
  float* left;          // (blocks,) max |k - center| over this block and those before it
  float* right;         // (blocks,) the same over this block and those after it
  float* radius;        // (blocks,) max |k - centroid| of the block
  float* length;        // (blocks,) |centroid|
  float* centroid;      // (blocks, D)
  float center_length;

  // Enough for blocks and centres of any size.
  static std::int64_t size(std::int64_t n, std::int64_t depth) {
    const std::int64_t blocks = (n + kKeyBlock - 1) / kKeyBlock;
    return 1 + 4 * blocks + blocks * depth + (depth + 31) / 32 * 32;
  }

  explicit KeyBounds(const AttentionHead& head) {
    const std::int64_t blocks = blocks_of(head);
    float* at = head.bounds;
    center_length = *at;
    center = at + 1;
    left = center + centre_size(*head.call);
    right = left + blocks;
    radius = right + blocks;
    length = radius + blocks;
    centroid = length + blocks;
  }
};

// Rounding of a dot product of D floats, relative to the product of the lengths; twice over, for
// the score itself is rounded too.
inline float slack_of(std::int64_t depth) { return static_cast<float>(depth + 8) * 0x1p-23f; }

// |x - center|, or |x|.
inline float length_of(const float* x, const float* center, std::int64_t depth) {
  Floats sum = {};
  std::int64_t d = 0;
  for (; d + kLanes <= depth; d += kLanes) {
    const Floats difference = center ? load(x + d) - load(center + d) : load(x + d);
    sum += difference * difference;
  }
  float rest = 0;
  for (; d < depth; ++d) {
    const float difference = x[d] - (center ? center[d] : 0.0f);
    rest += difference * difference;
  }
  return std::sqrt(sum_of(sum) + rest);
}

// The larger, and NaN where either is: a key that is NaN must be met.
inline float wider(float a, float b) { return b > a || b != b ? b : a; }

inline float larger_of(float a, float b) { return a > b ? a : b; }

inline void mean_of(const float* rows, std::int64_t count, std::int64_t depth, float* mean) {
  for (std::int64_t d = 0; d < depth; ++d) mean[d] = 0;
  for (std::int64_t r = 0; r < count; ++r)
    for (std::int64_t d = 0; d < depth; ++d) mean[d] += rows[r * depth + d];
  const float scale = 1.0f / static_cast<float>(count);
  for (std::int64_t d = 0; d < depth; ++d) mean[d] *= scale;
}

// A side's bounds hold for all blocks from there outward.
inline void spread_outward(const KeyBounds& bounds, std::int64_t blocks) {
  for (std::int64_t b = 1; b < blocks; ++b) bounds.left[b] = wider(bounds.left[b], bounds.left[b - 1]);
  for (std::int64_t b = blocks - 2; b >= 0; --b)
    bounds.right[b] = wider(bounds.right[b], bounds.right[b + 1]);
}

// keys: (n, D), or null: they are then read block by block.
inline void make_key_bounds(const AttentionHead& head, const float* keys) {
  const std::int64_t depth = head.call->head_dim, blocks = blocks_of(head);
  const std::int64_t block = key_block(head);
  float copy[kMostKeys * kMostDepth];
  const auto block_at = [&](std::int64_t b, std::int64_t count) -> const float* {
    if (keys) return keys + b * block * depth;
    read_rows(head.call->k, head.call->dtype, head.first + b * block, head.head, count, depth,
              copy);
    return copy;
  };
  KeyBounds bounds(head);
  const float slack = slack_of(depth);
  const auto count_of = [&](std::int64_t b) {
    const std::int64_t left = head.n - b * block;
    return left < block ? left : block;
  };
  for (std::int64_t d = 0; d < depth; ++d) bounds.center[d] = 0;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t count = count_of(b);
    float* centroid = bounds.centroid + b * depth;
    mean_of(block_at(b, count), count, depth, centroid);
    const float share = static_cast<float>(count) / static_cast<float>(head.n);
    for (std::int64_t d = 0; d < depth; ++d) bounds.center[d] += share * centroid[d];
  }
  const float center_length = length_of(bounds.center, nullptr, depth);
  *head.bounds = center_length;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t count = count_of(b);
    const float* centroid = bounds.centroid + b * depth;
    const float* rows = block_at(b, count);
    float from_center = 0, from_centroid = 0, longest = 0;
    for (std::int64_t r = 0; r < count; ++r) {
      const float* row = rows + r * depth;
      from_center = wider(from_center, length_of(row, bounds.center, depth));
      from_centroid = wider(from_centroid, length_of(row, centroid, depth));
      longest = wider(longest, length_of(row, nullptr, depth));
    }
    const float length = length_of(centroid, nullptr, depth);
    bounds.left[b] = bounds.right[b] = from_center * (1 + slack) + slack * (longest + center_length);
    bounds.radius[b] = from_centroid * (1 + slack) + slack * (longest + length);
    bounds.length[b] = length;
  }
  spread_outward(bounds, blocks);
}

// Of each query in q (D, strip): its square, and its product with the mean key.
template <int C>
inline void measure_queries(const AttentionHead& head, const float* q, Floats (&square)[C],
                            Floats (&along)[C]) {
  const KeyBounds bounds(head);
  for (int c = 0; c < C; ++c) square[c] = along[c] = Floats{};
  for (std::int64_t d = 0; d < head.call->head_dim; ++d)
    for (int c = 0; c < C; ++c) {
      const Floats x = load(q + d * Strip<C>::kWidth + c * kLanes);
      square[c] += x * x;
      along[c] += x * bounds.center[d];
    }
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
