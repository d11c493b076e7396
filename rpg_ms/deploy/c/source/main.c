/* Runs the network on images: raw float32 values, NET_INPUT_SIZE of them for each, as the JSON file beside this folder
 * describes them, from standard input; writes NET_OUTPUT_SIZE numbers for each, one image a line. */
#include "net.h"

#include <stdio.h>

static float input[NET_INPUT_SIZE], output[NET_OUTPUT_SIZE];
#if defined(__GNUC__)
__attribute__((aligned(64))) /* not needed, but faster */
#endif
static float arena[NET_ARENA_BYTES / 4];
#if NET_WEIGHTS_BYTES
static float weights[NET_WEIGHTS_BYTES / 4];
#endif

int main(int count, char **arguments) {
    const void *given = NULL;
#if NET_WEIGHTS_BYTES
    FILE *file = fopen(count > 1 ? arguments[1] : "net.bin", "rb");
    if (file == NULL || fread(weights, 1, NET_WEIGHTS_BYTES, file) != NET_WEIGHTS_BYTES) {
        fprintf(stderr, "the weights cannot be read; usage: %s net.bin < images\n", arguments[0]);
        return 1;
    }
    fclose(file);
    given = weights;
#endif
    (void)count, (void)arguments;
    while (fread(input, sizeof(float), NET_INPUT_SIZE, stdin) == NET_INPUT_SIZE) {
        net_run(given, input, output, arena);
        for (int i = 0; i < NET_OUTPUT_SIZE; i++) printf("%.9g%c", output[i], i + 1 < NET_OUTPUT_SIZE ? ' ' : '\n');
    }
    return 0;
}
