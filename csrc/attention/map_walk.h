// A map (attention/map.h) over a block of keys: the scores of a strip, forward and backward.
#pragma once

#include "attention/map_tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// In base 2. The largest numbers stay finite, as the most negative ones do.
inline Floats mapped_score(Floats x) {
  const Floats scaled = dense_bias(x);
  return (scaled > 2.9e38f) & (x != kInfinity) ? splat(2.9e38f) : scaled;
}

// to (keys, strip) = the new scores in base 2 of s, which may be the same memory, and the largest of each query.
// hidden: what is added afterwards, or null.
template <int C>
__attribute__((noinline)) void map_scores(const AttentionHead& head, const Strip<C>& strip,
                                          std::int64_t first_key, std::int64_t count,
                                          const float* hidden, const float* s, float* to,
                                          Floats (&top)[C]) {
  constexpr std::int64_t kWidth = Strip<C>::kWidth, kRows = MapTile<C>::kRows;
  MapTile<C> tile(head, strip);
  for (int c = 0; c < C; ++c) top[c] = splat(-kInfinity);
  for (std::int64_t at = 0; at < count; at += kRows) {
    const std::int64_t rows = count - at < kRows ? count - at : kRows;
    tile.run(first_key + at, rows, s + at * kWidth);
    const auto result = tile.result();
    for (std::int64_t r = 0; r < rows; ++r)
      for (int c = 0; c < C; ++c) {
        const std::int64_t place = (at + r) * kWidth + c * kLanes;
        Floats score = mapped_score(result(r, c));
        if (hidden) score += load(hidden + place);
        store(to + place, score);
        top[c] = larger(score, top[c]);
      }
  }
}

// What a strip's delta is off by is in each of its pairs, and adds up in the gradient of a number that a head
// has but once. Summed with the same p and ds, it is known in the end, and taken out.
template <int C>
struct MapSums {
  Floats mass[C], ds[C];              // sums over keys of p, and of ds by the new scores
  Floats along[kMostMapValues][C];  // of p times the slope by each input

  void start(const MapProgram& map) {
    for (int c = 0; c < C; ++c) mass[c] = ds[c] = Floats{};
    for (std::size_t i = 0; i < map.inputs.size(); ++i)
      for (int c = 0; c < C; ++c) along[i][c] = Floats{};
  }

  // due: what ds ought to add up to, grad_lse.
  void finish(const AttentionHead& head, const Strip<C>& strip, const Floats (&due)[C]) const {
    const MapProgram& map = *head.call->map;
    for (std::size_t i = 0; i < map.inputs.size(); ++i) {
      if (!map.of_number[1 + i]) continue;
      double sum = 0;
      for (std::int64_t q = 0; q < strip.count; ++q) {
        const int c = static_cast<int>(q / kLanes), lane = static_cast<int>(q % kLanes);
        const double p = mass[c][lane];
        if (p > 0) sum += (due[c][lane] - ds[c][lane] / p) * static_cast<double>(along[i][c][lane]);
      }
      static_cast<double*>(map.inputs[i].grad)[head.sequence * head.call->n_heads + head.head] += sum;
    }
  }
};

// ds (keys, strip) by the new scores of s becomes that by the old ones. p: the weights.
template <int C>
__attribute__((noinline)) void turn_map_back(const AttentionHead& head, const Strip<C>& strip,
                                             std::int64_t first_key, std::int64_t count,
                                             const float* s, const float* p, float* ds,
                                             MapSums<C>& sums) {
  constexpr std::int64_t kWidth = Strip<C>::kWidth, kRows = MapTile<C>::kRows;
  MapTile<C> tile(head, strip);
  for (std::int64_t at = 0; at < count; at += kRows) {
    const std::int64_t rows = count - at < kRows ? count - at : kRows;
    tile.run(first_key + at, rows, s + at * kWidth);
    if (head.call->map->has_number) {
      Floats here[2][C] = {};
      for (std::int64_t i = at * kWidth; i < (at + rows) * kWidth; i += kWidth)
        for (int c = 0; c < C; ++c) {
          here[0][c] += load(p + i + c * kLanes);
          here[1][c] += load(ds + i + c * kLanes);
        }
      for (int c = 0; c < C; ++c) sums.mass[c] += here[0][c], sums.ds[c] += here[1][c];
      tile.add_along(p + at * kWidth, sums.along);
    }
    tile.turn_back(first_key + at, ds + at * kWidth);
  }
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
