/* The sizes and numbers that layout.py has too: Python compares them when it loads the library. */
#include "native.h"

#include <string.h>

#define CONSTANT(value) {#value, (int)(value)}

static const struct {
    const char *name;
    int value;
} constants[] = {
    CONSTANT(sizeof(Weight)),
    CONSTANT(sizeof(Layer)),
    CONSTANT(sizeof(Sizes)),
    CONSTANT(sizeof(Tokens)),
    CONSTANT(sizeof(CachedVectors)),
    CONSTANT(F32),
    CONSTANT(BF16),
    CONSTANT(F16),
    CONSTANT(INT8_ROWS),
    CONSTANT(INT8_TILES),
    CONSTANT(INT4_TILES),
    CONSTANT(INT4_TILES_WITH_MINS),
    CONSTANT(CACHE_F32),
    CONSTANT(CACHE_BF16),
    CONSTANT(CACHE_INT8),
    CONSTANT(CACHE_INT4),
    CONSTANT(STRIP),
    CONSTANT(GROUP),
    CONSTANT(MAX_INPUTS),
    CONSTANT(CHUNK_SLOTS),
    CONSTANT(MAX_SPLIT_TOKENS),
    CONSTANT(MAX_THREADS),
    CONSTANT(MAX_ROUNDED),
};

/* The number of that name, −1 where there is none. */
EXPORT int constant(const char *name) {
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (!strcmp(constants[i].name, name)) return constants[i].value;
    return -1;
}
