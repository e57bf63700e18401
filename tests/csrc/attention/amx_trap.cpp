// The tile instructions of Intel's matrix units, for a processor that has none: each faults (SIGILL),
// and is carried out here as Intel's manual describes it (Software Developer's Manual, volume 2), from
// its bytes and the registers it names. So what a compiler made of csrc/attention/amx.h is run and
// not its emulation.

#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace {

enum What { configured, released, zeroed, loaded, stored, multiplied, live };
std::atomic<long> counts[7];

struct Thread {
  std::atomic<long> id;
  bool ready;
  std::uint8_t rows[8];
  std::uint16_t row_bytes[8];
  std::uint8_t tiles[8][16][64];
};
Thread threads[64];

Thread* own() {
  const long id = syscall(SYS_gettid);
  for (Thread& thread : threads) {
    long nobody = 0;
    if (thread.id == id || thread.id.compare_exchange_strong(nobody, id)) return &thread;
  }
  return nullptr;
}

// The registers by the numbers that instructions have for them.
constexpr int kRegister[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                               REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

struct Operand {
  std::uint64_t base, index;  // index: scaled, the bytes from row to row
  int length;                 // bytes of ModRM and what follows it
};

bool memory_operand(const std::uint8_t* modrm, bool x, bool b, const greg_t* registers, Operand& to) {
  const int mod = *modrm >> 6, rm = *modrm & 7;
  if (mod == 3) return false;
  int length = 1, base = rm;
  to.index = 0;
  if (rm == 4) {
    const int sib = modrm[1], index = (sib >> 3 & 7) | (x ? 8 : 0);
    base = sib & 7;
    if (index != 4)
      to.index = static_cast<std::uint64_t>(registers[kRegister[index]]) << (sib >> 6);
    length = 2;
  }
  if (mod == 0 && base == 5) return false;  // no base: not what is compiled here
  to.base = static_cast<std::uint64_t>(registers[kRegister[base | (b ? 8 : 0)]]);
  if (mod == 1) to.base += static_cast<std::int64_t>(static_cast<std::int8_t>(modrm[length])), ++length;
  if (mod == 2) {
    std::int32_t displacement;
    std::memcpy(&displacement, modrm + length, 4);
    to.base += static_cast<std::int64_t>(displacement), length += 4;
  }
  to.length = length;
  return true;
}

float wide(const std::uint8_t* from) {
  std::uint32_t bits = std::uint32_t{from[0]} << 16 | std::uint32_t{from[1]} << 24;
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;  // DAZ
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

float flushed(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  std::memcpy(&value, &bits, 4);
  return value;
}

bool multiply(Thread& t, int sum, int a, int b) {
  if (t.row_bytes[a] / 4 != t.rows[b] || t.rows[sum] != t.rows[a] ||
      t.row_bytes[sum] != t.row_bytes[b])
    return false;
  for (int m = 0; m < t.rows[sum]; ++m)
    for (int n = 0; n < t.row_bytes[sum] / 4; ++n) {
      float lower = 0, upper = 0, before;
      for (int k = 0; k < t.rows[b]; ++k) {
        lower = flushed(lower + wide(&t.tiles[a][m][4 * k]) * wide(&t.tiles[b][k][4 * n]));
        upper = flushed(upper + wide(&t.tiles[a][m][4 * k + 2]) * wide(&t.tiles[b][k][4 * n + 2]));
      }
      std::memcpy(&before, &t.tiles[sum][m][4 * n], 4);
      const float after = flushed(flushed(before) + flushed(lower + upper));
      std::memcpy(&t.tiles[sum][m][4 * n], &after, 4);
    }
  return true;
}

// The length of the instruction, 0 where it is none of these or must fault.
int carry_out(const std::uint8_t* code, const greg_t* registers) {
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2) return 0;  // three-byte VEX, map 0F38
  const bool x = !(code[1] & 0x40), b = !(code[1] & 0x20);
  if (code[2] & 0x84) return 0;  // W0, 128 bits
  const int prefix = code[2] & 3, source = ~(code[2] >> 3) & 15, opcode = code[3];
  const std::uint8_t* modrm = code + 4;
  const int reg = *modrm >> 3 & 7, rm = *modrm & 7;
  const bool direct = *modrm >> 6 == 3;
  Thread* t = own();
  Operand at;
  if (!t) return 0;
  if (opcode == 0x49 && prefix == 0 && direct && *modrm == 0xc0) {  // tilerelease
    if (t->ready) --counts[live];
    t->ready = false, ++counts[released];
    return 5;
  }
  if (opcode == 0x49 && prefix == 0 && !direct && reg == 0) {  // ldtilecfg
    if (!memory_operand(modrm, x, b, registers, at)) return 0;
    const auto* from = reinterpret_cast<const std::uint8_t*>(at.base + at.index);
    if (from[0] != 1) return 0;
    for (int i = 2; i < 16; ++i)
      if (from[i]) return 0;
    for (int i = 0; i < 16; ++i) {
      const int bytes = from[16 + 2 * i] | from[17 + 2 * i] << 8, rows = from[48 + i];
      if (i >= 8 ? bytes || rows : bytes > 64 || rows > 16 || !bytes != !rows) return 0;
      if (i < 8) t->row_bytes[i] = static_cast<std::uint16_t>(bytes);
      if (i < 8) t->rows[i] = static_cast<std::uint8_t>(rows);
    }
    std::memset(t->tiles, 0, sizeof t->tiles);
    if (!t->ready) ++counts[live];
    t->ready = true, ++counts[configured];
    return 4 + at.length;
  }
  if (!t->ready) return 0;
  if (opcode == 0x49 && prefix == 3 && direct && rm == 0) {  // tilezero
    std::memset(t->tiles[reg], 0, sizeof t->tiles[reg]);
    ++counts[zeroed];
    return 5;
  }
  if (opcode == 0x4b && (prefix == 3 || prefix == 2) && !direct && rm == 4) {
    if (!memory_operand(modrm, x, b, registers, at)) return 0;
    for (int row = 0; row < t->rows[reg]; ++row) {
      auto* place = reinterpret_cast<std::uint8_t*>(at.base + row * at.index);
      std::uint8_t* tile = t->tiles[reg][row];
      if (prefix == 3)  // tileloadd
        std::memcpy(tile, place, t->row_bytes[reg]);
      else  // tilestored
        std::memcpy(place, tile, t->row_bytes[reg]);
    }
    ++counts[prefix == 3 ? loaded : stored];
    return 4 + at.length;
  }
  if (opcode == 0x5c && prefix == 2 && direct) {  // tdpbf16ps reg, rm, source
    if (source > 7 || reg == rm || reg == source || rm == source) return 0;
    if (!multiply(*t, reg, rm, source)) return 0;
    ++counts[multiplied];
    return 5;
  }
  return 0;
}

void on_illegal(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto* code = reinterpret_cast<const std::uint8_t*>(registers[REG_RIP]);
  if (const int length = carry_out(code, registers)) {
    registers[REG_RIP] += length;
    return;
  }
  signal(SIGILL, SIG_DFL);  // a second time it ends the process
}

struct Install {
  Install() {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, nullptr);
  }
} install;

}  // namespace

extern "C" long amx_trapped(int what) { return counts[what]; }
