/* Whether the processes live that hold memory. */
#ifndef BURSAR_NVML_LIVES_H
#define BURSAR_NVML_LIVES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LIVES_MAX 4096

/* Drops all; what is noted about deaths lies in this folder. A forked child drops only its own. */
void lives_restart(int folder, bool forked);

/* Between these two, all that are still of interest are named; the others are dropped. */
void lives_begin(void);
void lives_end(void);
/* Where the process is from now on; false where it cannot be watched. */
bool lives_name(uint32_t pid, uint64_t start, size_t *place);

void lives_notice_deaths(void);
bool lives_alive(size_t place);
int64_t lives_dead_for_ms(size_t place);

#endif
