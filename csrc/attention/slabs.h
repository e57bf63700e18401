// Attention under a dense bias, or a map, that is there for a slab of queries at a time: what a bias of one's
// own says of them (pyenc/ops/attention/own_cpu.py). Keys are copied once for all slabs, and their
// gradients are added up over them.
#pragma once

#include <memory>
#include <vector>

#include "attention/arguments.h"
#include "attention/map.h"

namespace pyenc {

class SlabHeads {
 protected:
  explicit SlabHeads(const Attention& call);
  SlabHeads(const SlabHeads&) = delete;
  SlabHeads& operator=(const SlabHeads&) = delete;

  // The queries [first, last) of each sequence, as far as it has them, whose bias is (H, last - first,
  // reach) from now on.
  void serve(std::int64_t first, std::int64_t last, const float* bias);
  // The same whose scores go through a map, its inputs those of these queries.
  void serve(std::int64_t first, std::int64_t last, const MapProgram& map);

  Attention call_;
  std::vector<AttentionHead> heads_;
  std::unique_ptr<float[]> memory_;
};

class ForwardSlabs : SlabHeads {
 public:
  // `call` is of kind dense, in float32, without far keys to leave out.
  ForwardSlabs(const Attention& call, const AttentionForward& result);
  void slab(std::int64_t first, std::int64_t last, const float* bias);
  void slab(std::int64_t first, std::int64_t last, const MapProgram& map);

 private:
  void run();

  AttentionForward result_;
};

class BackwardSlabs : SlabHeads {
 public:
  BackwardSlabs(const Attention& call, const AttentionBackward& result);
  // grad_pairs: as of AttentionBackward, of this slab.
  void slab(std::int64_t first, std::int64_t last, const float* bias, float* grad_pairs);
  void slab(std::int64_t first, std::int64_t last, const MapProgram& map);
  // Gradients of keys and values, once all queries were served.
  void finish();

 private:
  void run();
  float* sums_of(std::size_t head) const;

  AttentionBackward result_;
  std::int64_t width_;
  std::vector<std::int64_t> place_;
};

}  // namespace pyenc
