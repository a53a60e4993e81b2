// What a step's products are made of: activations brought to 16 bits, and fragments of tensor cores.

// Sums and largest values over the block, in fixed order, of each sequence. `reduced`: shared memory, [2][BATCH][WARPS].
template <int COUNT> __device__ __forceinline__ void reduce(float (&sum)[COUNT], float (&largest)[COUNT], float* reduced) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int b = 0; b < COUNT; b++) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
      sum[b] += __shfl_xor_sync(0xffffffffu, sum[b], d);
      largest[b] = fmaxf(largest[b], __shfl_xor_sync(0xffffffffu, largest[b], d));
    }
    if (lane == 0) {
      reduced[b * WARPS + warp] = sum[b];
      reduced[(BATCH + b) * WARPS + warp] = largest[b];
    }
  }
  __syncthreads();
#pragma unroll
  for (int b = 0; b < COUNT; b++) {
    sum[b] = 0;
    largest[b] = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      sum[b] += reduced[b * WARPS + w];
      largest[b] = fmaxf(largest[b], reduced[(BATCH + b) * WARPS + w]);
    }
  }
}

// The power of two that brings `largest` into f16's range; `factor` undoes it and multiplies by `by`.
__device__ __forceinline__ float scale_of(float largest, bool half, float by, float& factor) {
  float scale = 1.f;
  factor = by;
  if (half && largest > 0.f) {
    int e = (__float_as_int(largest) >> 23) - 127;
    e = max(-100, min(100, e - 14));
    scale = power_of_two(-e);
    factor *= power_of_two(e);
  }
  return scale;
}

// Two activations in the type of a stage's products. f16 is scaled by a power of two; `factors` undoes it.
__device__ __forceinline__ u32 packed(float x, float y, bool half) { return half ? two_f16(x, y) : two(x, y); }

// 16 rows x 32 columns.
__device__ __forceinline__ void multiply_rows(float* s, const uint4& p, const uint4& q, const uint4& x) {
  mma(s, p.x, q.x, p.y, q.y, x.x, x.y);
  mma(s, p.z, q.z, p.w, q.w, x.z, x.w);
}

// 8 values, of a sequence that is there.
__device__ __forceinline__ uint4 values_at(const u16* from, bool there) { return there ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0); }

// A warp's sums of 16 rows.
__device__ __forceinline__ void keep(float* out, const float* s) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  if (2 * t < BATCH) {
    out[2 * t * 16 + g] = s[0];
    out[2 * t * 16 + g + 8] = s[2];
  }
  if (2 * t + 1 < BATCH) {
    out[(2 * t + 1) * 16 + g] = s[1];
    out[(2 * t + 1) * 16 + g + 8] = s[3];
  }
}

#if CODED
// A tile of codes (tiles.cu) times x, of which `x` points to this lane's row and columns. `table`: a word for each byte and lane.
__device__ __forceinline__ void multiply_tile(float* s, const uint4* data, const u16* x, const u8* table) {
  const int lane = threadIdx.x % 32, g = lane / 4;
  const uint4 A = data[lane], B = data[32 + lane];
  const uint2 S = reinterpret_cast<const uint2*>(data + 64)[g];
  const u32 a[4] = {A.x, A.y, A.z, A.w}, b[4] = {B.x, B.y, B.z, B.w};
#if FORM == 0
  // Two values of a byte of codes; each lane has a bank of its own.
  auto value = [&](u32 bits) { return *reinterpret_cast<const u32*>(table + ((bits & 0x7f80) | lane * 4)); };
  // Scales of both blocks of row g, of row g + 8.
  const float f[4] = {half_to_float((u16)S.x), half_to_float((u16)(S.x >> 16)), half_to_float((u16)S.y), half_to_float((u16)(S.y >> 16))};
#else
  // Scale and 1024 + zero of row g, of row g + 8.
  const u32 zero = __byte_perm(S.x, S.x, 0x3232), other_zero = __byte_perm(S.y, S.y, 0x3232);
  float c[4] = {0, 0, 0, 0};
#endif
#pragma unroll
  for (int block = 0; block < 2; block++) {
    uint4 x0 = {0, 0, 0, 0}, x1 = {0, 0, 0, 0};
    if (BATCH == 8 || g < BATCH) {
      const uint4* from = reinterpret_cast<const uint4*>(x + block * 64);
      x0 = from[0];
      x1 = from[1];
    }
    const u32 v[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
#if FORM == 0
    float c[4] = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      // The bytes come to the place of an offset of the table: 32 times 4 bytes each.
      const u32 p = a[block * 2 + (j >> 1)], q = b[block * 2 + (j >> 1)];
      if (j & 1) mma_f16(c, value(p >> 9), value(q >> 9), value(p >> 17), value(q >> 17), v[2 * j], v[2 * j + 1]);
      else mma_f16(c, value(p << 7), value(q << 7), value(p >> 1), value(q >> 1), v[2 * j], v[2 * j + 1]);
    }
    s[0] += c[0] * f[block];
    s[1] += c[1] * f[block];
    s[2] += c[2] * f[2 + block];
    s[3] += c[3] * f[2 + block];
#else
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const u32 p = a[block * 2 + (j >> 1)] >> (8 * (j & 1)), q = b[block * 2 + (j >> 1)] >> (8 * (j & 1));
      mma_f16(c, less(p, zero), less(q, other_zero), less(p >> 4, zero), less(q >> 4, other_zero), v[2 * j], v[2 * j + 1]);
    }
#endif
  }
#if FORM != 0
  const float scale = half_to_float((u16)S.x), other_scale = half_to_float((u16)S.y);
  s[0] += c[0] * scale;
  s[1] += c[1] * scale;
  s[2] += c[2] * other_scale;
  s[3] += c[3] * other_scale;
#endif
}
#endif
