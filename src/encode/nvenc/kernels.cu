// Every packed pixel format to NV12, BT.709 limited range, one thread per 2x2 pixels.
//
// Self-contained: no CUDA headers, so that clang alone makes the PTX (scripts/make_ptx.sh), which is
// committed beside this file. The arithmetic is integer and is written once more, plainly, in
// kernels.rs; both are compared bit by bit, on the host and on a GPU.
//
// Conventions: src_pitch and dst_pitch are bytes from row to row; width and height are the source's;
// the destination is the next even size, edges repeat the last column and row; chroma starts
// dst_pitch * even_height bytes behind luma.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDA__
#define KERNEL extern "C" __attribute__((global)) void
#define DEVICE static __attribute__((device)) inline
DEVICE u32 thread_x() {
    return __nvvm_read_ptx_sreg_ctaid_x() * __nvvm_read_ptx_sreg_ntid_x() + __nvvm_read_ptx_sreg_tid_x();
}
DEVICE u32 thread_y() {
    return __nvvm_read_ptx_sreg_ctaid_y() * __nvvm_read_ptx_sreg_ntid_y() + __nvvm_read_ptx_sreg_tid_y();
}
#else
// Compiled for the host by a test, which plays every thread in turn.
#define KERNEL extern "C" void
#define DEVICE static inline
static u32 host_x, host_y;
extern "C" void host_thread(u32 x, u32 y) {
    host_x = x;
    host_y = y;
}
DEVICE u32 thread_x() { return host_x; }
DEVICE u32 thread_y() { return host_y; }
#endif

DEVICE u32 even(u32 n) { return (n + 1) & ~1u; }

DEVICE u32 clamp(int value) { return value < 0 ? 0 : value > 255 ? 255 : (u32)value; }

// The 2x2 block of this thread: its source rows and columns, with the edges repeated.
struct Block {
    u32 x0, x1, y0, y1;
    bool inside;
};

DEVICE Block block(u32 width, u32 height) {
    Block b;
    b.x0 = thread_x() * 2;
    b.y0 = thread_y() * 2;
    b.inside = b.x0 < width && b.y0 < height;
    b.x1 = b.x0 + 1 < width ? b.x0 + 1 : b.x0;
    b.y1 = b.y0 + 1 < height ? b.y0 + 1 : b.y0;
    return b;
}

// Two bytes at an even column: dst_pitch is a multiple of 4, so the store is aligned.
DEVICE void store2(u8 *row, u32 x, u32 first, u32 second) { *(u16 *)(row + x) = (u16)(first | second << 8); }

DEVICE void store_luma(u8 *dst, u64 pitch, const Block &b, u32 a, u32 c, u32 d, u32 e) {
    store2(dst + b.y0 * pitch, b.x0, a, c);
    store2(dst + (b.y0 + 1) * pitch, b.x0, d, e);
}

DEVICE void store_chroma(u8 *dst, u64 pitch, u32 height, const Block &b, u32 u, u32 v) {
    store2(dst + (even(height) + b.y0 / 2) * pitch, b.x0, u, v);
}

// Three or four interleaved channels. A coefficient row is in the order of the bytes in memory and in
// 16.16 fixed point; a fourth channel is skipped.
KERNEL packed_to_nv12(const u8 *src, u32 src_pitch, u8 *dst, u32 dst_pitch, u32 width, u32 height, u32 bpp,
                      int ya, int yb, int yc, int ua, int ub, int uc, int va, int vb, int vc) {
    Block b = block(width, height);
    if (!b.inside)
        return;
    const u8 *p[4] = {
        src + (u64)b.y0 * src_pitch + (u64)b.x0 * bpp,
        src + (u64)b.y0 * src_pitch + (u64)b.x1 * bpp,
        src + (u64)b.y1 * src_pitch + (u64)b.x0 * bpp,
        src + (u64)b.y1 * src_pitch + (u64)b.x1 * bpp,
    };
    int sum[3] = {0, 0, 0};
    u32 luma[4];
    for (int i = 0; i < 4; i++) {
        int c0 = p[i][0], c1 = p[i][1], c2 = p[i][2];
        luma[i] = clamp((ya * c0 + yb * c1 + yc * c2 + (16 << 16) + (1 << 15)) >> 16);
        sum[0] += c0;
        sum[1] += c1;
        sum[2] += c2;
    }
    store_luma(dst, dst_pitch, b, luma[0], luma[1], luma[2], luma[3]);
    int u = (ua * sum[0] + ub * sum[1] + uc * sum[2] + (128 << 18) + (1 << 17)) >> 18;
    int v = (va * sum[0] + vb * sum[1] + vc * sum[2] + (128 << 18) + (1 << 17)) >> 18;
    store_chroma(dst, dst_pitch, height, b, clamp(u), clamp(v));
}

// Full-range grey to limited-range luma. Chroma is 128 and is written once, when the surface is made.
KERNEL gray_to_nv12(const u8 *src, u32 src_pitch, u8 *dst, u32 dst_pitch, u32 width, u32 height, int scale) {
    Block b = block(width, height);
    if (!b.inside)
        return;
    const u8 *top = src + (u64)b.y0 * src_pitch, *bottom = src + (u64)b.y1 * src_pitch;
    int g[4] = {top[b.x0], top[b.x1], bottom[b.x0], bottom[b.x1]};
    u32 luma[4];
    for (int i = 0; i < 4; i++)
        luma[i] = clamp((scale * g[i] + (16 << 16) + (1 << 15)) >> 16);
    store_luma(dst, dst_pitch, b, luma[0], luma[1], luma[2], luma[3]);
}

// Packed 4:4:4 as Y, U, V: luma as it is, chroma the mean of four.
KERNEL yuv444_to_nv12(const u8 *src, u32 src_pitch, u8 *dst, u32 dst_pitch, u32 width, u32 height) {
    Block b = block(width, height);
    if (!b.inside)
        return;
    const u8 *top = src + (u64)b.y0 * src_pitch, *bottom = src + (u64)b.y1 * src_pitch;
    const u8 *p[4] = {top + (u64)b.x0 * 3, top + (u64)b.x1 * 3, bottom + (u64)b.x0 * 3, bottom + (u64)b.x1 * 3};
    store_luma(dst, dst_pitch, b, p[0][0], p[1][0], p[2][0], p[3][0]);
    u32 u = (p[0][1] + p[1][1] + p[2][1] + p[3][1] + 2) >> 2;
    u32 v = (p[0][2] + p[1][2] + p[2][2] + p[3][2] + 2) >> 2;
    store_chroma(dst, dst_pitch, height, b, u, v);
}

// 4:2:2 as Y0 U Y1 V: luma as it is, chroma the mean of both rows. An odd last column has a U but no V of its
// own: that of the pair before is repeated, 128 if there is none.
KERNEL yuyv_to_nv12(const u8 *src, u32 src_pitch, u8 *dst, u32 dst_pitch, u32 width, u32 height) {
    Block b = block(width, height);
    if (!b.inside)
        return;
    const u8 *top = src + (u64)b.y0 * src_pitch, *bottom = src + (u64)b.y1 * src_pitch;
    store_luma(dst, dst_pitch, b, top[b.x0 * 2], top[b.x1 * 2], bottom[b.x0 * 2], bottom[b.x1 * 2]);
    u32 u = (top[b.x0 * 2 + 1] + bottom[b.x0 * 2 + 1] + 1) >> 1, v = 128;
    if (width > 1) {
        u32 pair = b.x0 + 1 < width ? b.x0 : b.x0 - 2;
        v = (top[pair * 2 + 3] + bottom[pair * 2 + 3] + 1) >> 1;
    }
    store_chroma(dst, dst_pitch, height, b, u, v);
}

// Two chroma planes into NV12's one, for pictures that the host has converted; width and height are those of
// a chroma plane, dst is the chroma plane. One thread per sample pair.
KERNEL interleave_chroma(const u8 *u, const u8 *v, u32 src_pitch, u8 *dst, u32 dst_pitch, u32 width, u32 height) {
    u32 x = thread_x(), y = thread_y();
    if (x >= width || y >= height)
        return;
    store2(dst + (u64)y * dst_pitch, x * 2, u[(u64)y * src_pitch + x], v[(u64)y * src_pitch + x]);
}
