// Types, and values of 16 bits as floats. The sources of this folder are compiled as one, this one first, by NVRTC at run time.
//
// No header is included, so that the compiler needs no folder of them. VALUE_TYPE is the 16-bit or 32-bit type of values outside:
// 0 f32, 1 bf16, 2 f16.

// Of 16 rows x 128 columns in four bits, see tiles.cu.
#define TILE_BYTES 1088

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__device__ __forceinline__ u32 two(float low, float high) {
  u32 both;
#if VALUE_TYPE == 1
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#endif
  return both;
}

__device__ __forceinline__ float half_to_float(u16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

#if VALUE_TYPE != 0
__device__ __forceinline__ float low(u32 both) {
#if VALUE_TYPE == 1
  return __uint_as_float(both << 16);
#else
  return half_to_float((u16)both);
#endif
}

__device__ __forceinline__ float high(u32 both) {
#if VALUE_TYPE == 1
  return __uint_as_float(both & 0xffff0000u);
#else
  return half_to_float((u16)(both >> 16));
#endif
}
#endif
