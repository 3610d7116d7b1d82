/* An imitation of the ZED SDK's C wrapper for the tests of the SDK backend, written from the
 * signatures in the contract. It checks what it is handed and answers with a picture whose bar
 * code is the frame number. Built by the tests; VERSION and the way to open depend on it. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION "5.2.0"
#endif
enum { WIDTH = 672, HEIGHT = 376, FRAMES = 12, STEP = WIDTH * 4 + 64 };

static int position = -1, next_frame = 0, open_cameras = 0;

static void check(int good, const char *what) {
    if (!good) {
        fprintf(stderr, "fake SDK: %s\n", what);
        exit(99);
    }
}
static int32_t word(const uint8_t *p, int at) { int32_t v; memcpy(&v, p + at, 4); return v; }
static float real(const uint8_t *p, int at) { float v; memcpy(&v, p + at, 4); return v; }

char *sl_get_sdk_version(void) { return VERSION; }
bool sl_create_camera(int id) { check(id >= 0, "camera id"); return true; }

static int open_svo(const uint8_t *init, const char *svo, const char *log, const char *dir,
                    const char *calib) {
    check(word(init, 0) == 1 && init[20] == 1 && init[22] == 0, "InitParameters: input");
    check(word(init, 24) == 0 && real(init, 32) == -1 && real(init, 36) == -1, "InitParameters: depth");
    check(word(init, 48) == -1 && real(init, 60) == 5, "InitParameters: GPU or time-out");
    for (int at = 72; at < 256; at++) check(init[at] == 0, "InitParameters: the rest is not zero");
    check(svo && log && dir && calib, "a null string");
    if (strstr(svo, "broken")) return 11;
    if (strstr(svo, "nogpu")) return 2;
    open_cameras++;
    return 0;
}
#ifdef OLDER
int sl_open_camera(int id, void *init, unsigned serial, const char *svo, const char *ip, int port,
                   const char *log, const char *dir, const char *calib) {
    check(serial == 0 && ip && !*ip && port == 0, "stream parameters");
    return open_svo(init, svo, log, dir, calib);
}
#else
int sl_open_camera_from_svo_file(int id, void *init, const char *svo, const char *log,
                                 const char *dir, const char *calib) {
    return open_svo(init, svo, log, dir, calib);
}
#endif
int sl_get_svo_number_of_frames(int id) { return FRAMES; }
void sl_set_svo_position(int id, int frame) { next_frame = frame; }
int sl_grab(int id, void *runtime) {
    const uint8_t *p = runtime;
    check(word(p, 0) == 1 && p[4] == 0 && p[5] == 0, "RuntimeParameters: depth");
    check(word(p, 8) == 95 && word(p, 12) == 100 && p[16] == 1, "RuntimeParameters: confidence");
    if (next_frame >= FRAMES) return 14;
    position = next_frame++;
    return position == 3 ? -1 : 0; /* a warning is no error */
}
unsigned long long sl_get_image_timestamp(int id) {
    return 1773806381000000000ull + position * 40000000ull;
}
int sl_get_width(int id) { return WIDTH; }
int sl_get_height(int id) { return HEIGHT; }
float sl_get_camera_fps(int id) { return 25; }
void *sl_mat_create_new(int w, int h, int type, int mem) {
    check(w == WIDTH && h == HEIGHT && type == 7 && mem == 0, "matrix type");
    return calloc(h, STEP);
}
int sl_retrieve_image(int id, void *mat, int view, int mem, int w, int h, void *stream) {
    check((view == 0 || view == 1) && mem == 0 && stream == NULL, "view");
    for (int y = 0; y < HEIGHT; y++)
        for (int x = 0; x < WIDTH; x++) {
            uint8_t *p = (uint8_t *)mat + y * STEP + x * 4;
            int bit = (x - 64) / 16, in_code = y < 16 && x >= 64 && bit < 16;
            int lit = in_code && (position + 100 * view) >> (15 - bit) & 1;
            /* blue, green, red, alpha: white bits on black, a red field below */
            p[0] = lit ? 255 : 0;
            p[1] = lit ? 255 : 0;
            p[2] = lit || !in_code ? 255 : 0;
            p[3] = 255;
        }
    return 0;
}
int *sl_mat_get_ptr(void *mat, int mem) { return mat; }
int sl_mat_get_step_bytes(void *mat, int mem) { return STEP; }
void sl_mat_free(void *mat, int mem) { free(mat); }
void sl_close_camera(int id) {}
void sl_unload_instance(void) {}
