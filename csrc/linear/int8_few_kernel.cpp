// The product of few rows in eight bits, compiled once per instruction set.

#include "linear/few_rows.h"
#include "linear/few_rows_tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// Rows of x unsigned, rows of W signed, both read four in a word. With x up to 192 and W up to 85 a sum of
// two products fits into 16 bits (pyenc/ops/linear/int8.py), where nothing better is there.
struct Bytes : InWords<std::uint8_t> {
  using Sum = std::int32_t;
  using Sums = Ints;
  static PYENC_INLINE Ints multiply_add(Ints sum, Vector x, Vector w) {
#if defined(PYENC_EMULATE_BF16_DOT)
    return plainly(sum, x, w);
#elif defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#elif defined(__AVX512F__) && defined(__AVX512DQ__)
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)x, (__m512i)w);
    return sum + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)x, (__m256i)w);
    return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    return plainly(sum, x, w);
#endif
  }

 private:
  static PYENC_INLINE Ints plainly(Ints sum, Vector x, Vector w) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      sum += ((x >> (8 * i)) & 0xff) * ((w << (24 - 8 * i)) >> 24);
    return sum;
  }
};

void multiply(const FewRows& call, std::int64_t first, std::int64_t last, const float* scale,
              std::int32_t* spare, float* y, float* sums) {
  const std::int64_t sums_row = few_sums(last - first), rows = call.rows - 1;
  sums_of<Bytes>(call, first, last, spare);
  for (std::int64_t r = 0; r < call.rows; ++r) {
    float* to = r < rows ? y + r * call.columns : sums;
    for (std::int64_t i = first; i < last; ++i)
      to[i] = static_cast<float>(spare[r * sums_row + i - first]) * scale[i];
  }
}

}  // namespace

extern const Int8FewKernels int8_few_kernels;
const Int8FewKernels int8_few_kernels{multiply};

}  // namespace PYENC_ISA
}  // namespace pyenc
