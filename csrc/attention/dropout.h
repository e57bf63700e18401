// Dropout of attention's weights: which are kept, told from the seed and the pair's places alone, so that
// forward and backward agree whatever their blocks, strips and threads are.
//
// Random numbers by counter (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a query
// has 64 bits and a key 32, by SplitMix64's finaliser (Steele et al., 2014) of seed and place; a pair's
// number are two rounds of multiplication and shift over the three words (Wellons' constants of least
// bias), the second word of the query between them, so that no two queries draw the same row.
#pragma once

#include "attention/tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

typedef std::uint32_t Counts __attribute__((vector_size(4 * kLanes)));

inline std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

template <int C>
struct Dropout {
  Counts low[C], high[C];  // of each query
  std::uint32_t least;     // a weight is kept from this number on

  void start(const AttentionHead& head, const Strip<C>& strip) {
    const Attention& call = *head.call;
    least = static_cast<std::uint32_t>(call.dropout * 4294967296.0);
    for (int c = 0; c < C; ++c) low[c] = high[c] = Counts{};
    for (std::int64_t i = 0; i < strip.count; ++i) {
      const std::int64_t place = (head.first + strip.first + i) * call.n_heads + head.head;
      const std::uint64_t bits = mixed(call.seed ^ mixed(static_cast<std::uint64_t>(place)));
      low[i / kLanes][i % kLanes] = static_cast<std::uint32_t>(bits);
      high[i / kLanes][i % kLanes] = static_cast<std::uint32_t>(bits >> 32);
    }
  }

  // Of a key of the sequence.
  static std::uint32_t code(const AttentionHead& head, std::int64_t key) {
    return static_cast<std::uint32_t>(mixed(~static_cast<std::uint64_t>(head.first + key)) >> 32);
  }

  // All bits of a lane where its query keeps the weight of the key.
  PYENC_INLINE Ints kept(std::uint32_t code, int c) const {
    Counts x = low[c] ^ code;
    x = (x ^ (x >> 16)) * 0x7feb352du + high[c];
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x ^= x >> 16;
    return (Ints)(x >= least);
  }

  // factors (keys, strip) = what the weights of keys [first, first + count) are multiplied with.
  void factors(const AttentionHead& head, std::int64_t first, std::int64_t count,
               float* factors) const {
    const Ints scale = as_ints(splat(head.call->kept_scale()));
    for (std::int64_t j = 0; j < count; ++j) {
      const std::uint32_t key = code(head, first + j);
      for (int c = 0; c < C; ++c)
        store(factors + j * Strip<C>::kWidth + c * kLanes, as_floats(kept(key, c) & scale));
    }
  }
};

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
