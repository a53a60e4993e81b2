// Four-bit weights in tiles of 16 rows x 128 columns, as the decode step reads them: a lane's bytes are adjacent, in the order of
// the tensor cores' fragments.
//
// A tile has TILE_BYTES. Lane 4 g + t: 16 bytes of row g, then, 512 bytes on, 16 of row g + 8: codes of columns 16 t to
// 16 t + 15, and of 64 + 16 t to 64 + 16 t + 15. From byte 1024 on, two f16 of row g and two of row g + 8, for each g. Tiles follow
// each other along a row of tiles; `splits` parts of the columns lie one after the other.
//
// NF4 and FP4: a byte has two codes, the first in its high half; the f16 are the scales of both halves of the columns. AWQ: four
// bytes have the codes of columns 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on; the f16 are the scale and 1024 + the zero point.

struct Tiles {
  const u8* tiles;
  const float* pairs;  // [256, 2], values of the two codes of a byte; null: AWQ
  float unit;          // factor of the scales
  int rows;            // of this matrix
  int columns;
  int tile_rows;       // of the tensor
  int first;           // row of tiles in the tensor
  int splits;
  int part;            // 0: the tiles hold this matrix alone; 1, 2: rows 0 to 7, 8 to 15 of each
};

#if VALUE_TYPE != 0
// A warp a tile.
extern "C" __global__ void __launch_bounds__(256) restore_tiles(Tiles w, u16* out) {
  __shared__ float2 pairs[256];
  if (w.pairs != nullptr) pairs[threadIdx.x] = reinterpret_cast<const float2*>(w.pairs)[threadIdx.x];
  __syncthreads();
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int across = w.columns / 128, lines = w.part == 0 ? 16 : 8, share = across / w.splits;
  const u64 tile = (u64)blockIdx.x * 8 + threadIdx.x / 32;
  const int row = (int)(tile / across), column = (int)(tile % across);
  if (row >= w.rows / lines) return;
  const u8* from = w.tiles + ((u64)(column / share * w.tile_rows + w.first + row) * share + column % share) * TILE_BYTES;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (w.part == 2 - half) continue;
    const uint4 bytes = reinterpret_cast<const uint4*>(from)[half * 32 + lane];
    const u32 words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
    const u16* scales = reinterpret_cast<const u16*>(from + 1024) + 4 * g + 2 * half;
    u16* to = out + (u64)(row * lines + g + (w.part == 0 ? 8 * half : 0)) * w.columns + column * 128 + 16 * t;
#pragma unroll
    for (int block = 0; block < 2; block++) {
      const float scale = half_to_float(scales[w.pairs == nullptr ? 0 : block]) * w.unit;
      u32 values[8];
#pragma unroll
      for (int k = 0; k < 8; k++) {
        const u32 word = words[2 * block + k / 4];
        float2 pair;
        if (w.pairs != nullptr) {
          pair = pairs[word >> (8 * (k % 4)) & 255];
        } else {
          const float zero = half_to_float(scales[1]) - 1024.f;
          pair = make_float2((float)(word >> (4 * (k % 4)) & 15) - zero, (float)(word >> (4 * (k % 4) + 16) & 15) - zero);
        }
        values[k] = two(__fmul_rn(pair.x, scale), __fmul_rn(pair.y, scale));
      }
      uint4* there = reinterpret_cast<uint4*>(to + 64 * block);
      there[0] = make_uint4(values[0], values[1], values[2], values[3]);
      there[1] = make_uint4(values[4], values[5], values[6], values[7]);
    }
  }
}
#endif
