// The element types a kernel reads and writes, and their conversions to and from float.
//
// Written without branches and without intrinsics, so that every compiler turns loops over them into
// vector code; correct too when the thread flushes denormals (torch.set_flush_denormal).
// In an unnamed namespace: each instruction set gets its own copies (see shared/isa.h).
#pragma once

#include <cstdint>
#include <cstring>

namespace pyenc {

// The codes that the Python side sends (DTYPE_CODES in pyenc/ops).
enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

struct BFloat16 { std::uint16_t bits; };
struct Float16 { std::uint16_t bits; };

namespace {

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }

inline float widen(BFloat16 value) { return float_of(std::uint32_t{value.bits} << 16); }

inline float widen(Float16 value) {
  const std::uint32_t sign = (value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  // Normal numbers: move exponent and mantissa into place and add the difference of the biases,
  // 127 - 15 = 112. Infinity and NaN need the largest exponent instead, twice that difference.
  const std::uint32_t rebias = magnitude >= 0x7c00u ? 224u << 23 : 112u << 23;
  const std::uint32_t normal = (magnitude << 13) + rebias;
  // Below 2^-14 the value is its mantissa times 2^-24.
  const std::uint32_t tiny =
      bits_of(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 5.9604644775390625e-8f);
  return float_of((magnitude < 0x400u ? tiny : normal) | sign);
}

inline void narrow(float value, float& to) { to = value; }

// Round to nearest, ties to even.
inline void narrow(float value, BFloat16& to) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to.bits = static_cast<std::uint16_t>(is_nan ? 0x7fc0u : rounded);
}

// Round to nearest, ties to even; from 65520 on to infinity.
inline void narrow(float value, Float16& to) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: 0.5 has 2^-24, the smallest step of a half, as its last place, so that adding it
  // leaves the rounding to the hardware and the count of such steps in the low bits.
  const std::uint32_t tiny = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  std::uint32_t half = magnitude < 0x38800000u ? tiny : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  to.bits = static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000u));
}

}  // namespace
}  // namespace pyenc
