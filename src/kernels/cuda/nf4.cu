// NF4 and FP4 weights in bitsandbytes' layout: dequantization, and the product with one row.

struct Coded {
  const u8* packed;      // two codes per byte, the first in the high nibble
  const u8* codes;       // 8-bit scale of each block, or null if `absmax` holds the scales
  const float* absmax;   // one per group of scales, or one per block
  const float* map;      // [256], values of the 8-bit scales
  const float* pairs;    // [256, 2], values of the two codes of a byte
  float offset;
  int block_shift;       // log2 of the values per block
  int nested_shift;      // log2 of the blocks per group of scales
  int rows;
  int columns;
};

// In the order of libtorch's operations, each rounded.
__device__ __forceinline__ float scale_of(const Coded& w, u64 block) {
  if (w.codes == nullptr) return w.absmax[block];
  return __fadd_rn(__fmul_rn(w.map[w.codes[block]], w.absmax[block >> w.nested_shift]), w.offset);
}

// Each thread dequantizes the eight values of four bytes. Block sizes are multiples of eight.
extern "C" __global__ void __launch_bounds__(256) dequantize(Coded w, void* out) {
  __shared__ float2 pairs[256];
  pairs[threadIdx.x] = reinterpret_cast<const float2*>(w.pairs)[threadIdx.x];
  __syncthreads();
  const u64 n = (u64)w.rows * w.columns;
  const u64 i = ((u64)blockIdx.x * 256 + threadIdx.x) * 8;
  if (i >= n) return;
  const float scale = scale_of(w, i >> w.block_shift);
  float values[8];
  const int count = n - i < 8 ? (int)(n - i) : 8;
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const u8 byte = 2 * k < count ? w.packed[i / 2 + k] : 0;
    values[2 * k] = __fmul_rn(pairs[byte].x, scale);
    values[2 * k + 1] = __fmul_rn(pairs[byte].y, scale);
  }
#if VALUE_TYPE == 0
  float* to = reinterpret_cast<float*>(out) + i;
#pragma unroll
  for (int k = 0; k < 8; k++) if (k < count) to[k] = values[k];
#else
  u32 words[4];
#pragma unroll
  for (int k = 0; k < 4; k++) words[k] = two(values[2 * k], values[2 * k + 1]);
  if (count == 8) {
    *reinterpret_cast<uint4*>(reinterpret_cast<u16*>(out) + i) = make_uint4(words[0], words[1], words[2], words[3]);
  } else {
    u16* to = reinterpret_cast<u16*>(out) + i;
#pragma unroll
    for (int k = 0; k < 8; k++) if (k < count) to[k] = (u16)(words[k / 2] >> (16 * (k % 2)));
  }
#endif
}

#if VALUE_TYPE != 0
// y = W x + bias for one x. One warp per row at a time, 32 adjacent values per lane, which are in one block.
//
// Shared memory: the values of every byte as f16, 32 times over so that each lane reads a bank of its own (NF4's values lie
// in [-1, 1]: f16 is finer there than bf16); then x, in the order in which lanes read it, 16 bytes a lane.
extern "C" __global__ void __launch_bounds__(512) product(Coded w, const u16* x, const u16* bias, u16* y) {
  extern __shared__ uint4 shared[];
  u32* table = reinterpret_cast<u32*>(shared);
  uint4* inputs = shared + 256 * 32 / 4;
  const int lane = threadIdx.x % 32, tiles = (w.columns + 1023) / 1024;
  for (int i = threadIdx.x; i < 256 * 32; i += blockDim.x) {
    const int byte = i / 32;
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(w.pairs[2 * byte + 1]), "f"(w.pairs[2 * byte]));
    table[i] = both;
  }
  for (int i = threadIdx.x; i < tiles * 128; i += blockDim.x) {
    const int tile = i / 128, part = i % 128 / 32, column = tile * 1024 + i % 32 * 32 + part * 8;
    inputs[i] = column < w.columns ? *reinterpret_cast<const uint4*>(x + column) : make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
  const int warps = gridDim.x * (blockDim.x / 32);
  for (int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; row < w.rows; row += warps) {
    const u64 start = (u64)row * w.columns;
    float sum = 0;
    for (int first = 0; first < tiles; first += 4) {
      uint4 bytes[4];
      float scales[4];
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const int column = (first + k) * 1024 + lane * 32;
        const bool here = column < w.columns;
        bytes[k] = here ? __ldcs(reinterpret_cast<const uint4*>(w.packed + (start + column) / 2)) : make_uint4(0, 0, 0, 0);
        scales[k] = here ? scale_of(w, (start + column) >> w.block_shift) : 0.f;
      }
#pragma unroll
      for (int k = 0; k < 4; k++) {
        if (first + k >= tiles) break;
        const u32 words[4] = {bytes[k].x, bytes[k].y, bytes[k].z, bytes[k].w};
        float part = 0;
#pragma unroll
        for (int q = 0; q < 4; q++) {
          const uint4 input = inputs[(first + k) * 128 + q * 32 + lane];
          const u32 pairs[4] = {input.x, input.y, input.z, input.w};
#pragma unroll
          for (int b = 0; b < 4; b++) {
            const u32 values = table[(words[q] >> (8 * b) & 255) * 32 + lane];
            part = fmaf(half_to_float((u16)values), low(pairs[b]), part);
            part = fmaf(half_to_float((u16)(values >> 16)), high(pairs[b]), part);
          }
        }
        sum = fmaf(part, scales[k], sum);
      }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) {
      if (bias != nullptr) sum += low(bias[row]);
      y[row] = (u16)two(sum, 0.f);
    }
  }
}
#endif
