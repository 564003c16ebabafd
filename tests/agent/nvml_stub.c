/*
 * A libnvidia-ml whose GPUs are made of a text file, so that the agent's real path through pynvml runs without a GPU.
 *
 * The file is named by NVML_STUB_STATE and is read again whenever it is replaced. Its lines:
 *
 *   gpus 2                     number of devices (8 without a file)
 *   init 9                     nvmlInit fails with this code
 *   gpu.0.power 350000         a reading, in NVML's own unit; defaults below
 *   gpu.0.power error 3        the call fails with this NVML code (3 not supported, 13 not found, 15 lost)
 *   gpu.0.all error 15         every call for the device fails
 *   event.1 0 79               the first XID event: device 0, code 79; device -1 is one that NVML cannot name
 *
 * Build: cc -shared -fPIC -pthread -o libnvidia-ml.so.1 nvml_stub.c
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10 };
enum { MOST_DEVICES = 64, MOST_LINES = 2048, XID_EVENT = 8 };

typedef struct { int index; } Device;
typedef struct { char key[64]; char word[16]; double value, second; } Line;
typedef struct { unsigned long long registered[MOST_DEVICES]; int delivered; } EventSet;

static Device devices[MOST_DEVICES];
static Line lines[MOST_LINES];
static int line_count, initialised;
static struct stat seen;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void load(void) {
    const char *path = getenv("NVML_STUB_STATE");
    struct stat now;
    if (path == NULL || stat(path, &now) != 0)
        return;
    if (now.st_ino == seen.st_ino && now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec && now.st_size == seen.st_size)
        return;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return;
    char text[256], first[32], second[32];
    line_count = 0;
    while (line_count < MOST_LINES && fgets(text, sizeof text, file) != NULL) {
        Line *line = &lines[line_count];
        first[0] = second[0] = 0;
        if (sscanf(text, "%63s %31s %31s", line->key, first, second) < 2)
            continue;
        snprintf(line->word, sizeof line->word, "%.15s", first);
        line->value = atof(first);
        line->second = atof(second);
        line_count++;
    }
    fclose(file);
    seen = now;
}

static const Line *find(const char *key) {
    for (int i = 0; i < line_count; i++)
        if (strcmp(lines[i].key, key) == 0)
            return &lines[i];
    return NULL;
}

static int device_count(void) {
    const Line *line = find("gpus");
    return line ? (int)line->value : 8;
}

/* A reading of a device, or the code that its call fails with. */
static int reading(const Device *device, const char *name, double otherwise, double *value) {
    char key[64];
    int code = SUCCESS;
    pthread_mutex_lock(&lock);
    load();
    snprintf(key, sizeof key, "gpu.%d.all", device->index);
    const Line *line = find(key);
    if (!initialised) {
        code = UNINITIALIZED;
    } else if (line != NULL && strcmp(line->word, "error") == 0) {
        code = (int)line->second;
    } else {
        snprintf(key, sizeof key, "gpu.%d.%s", device->index, name);
        line = find(key);
        if (line != NULL && strcmp(line->word, "error") == 0)
            code = (int)line->second;
        else
            *value = line ? line->value : otherwise;
    }
    pthread_mutex_unlock(&lock);
    return code;
}

static int unsigned_reading(const Device *device, const char *name, double otherwise, unsigned int *value) {
    double found = 0;
    int code = reading(device, name, otherwise, &found);
    if (code == SUCCESS)
        *value = (unsigned int)found;
    return code;
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    load();
    const Line *line = find("init");
    int code = line ? (int)line->value : SUCCESS;
    if (code == SUCCESS)
        initialised++;
    for (int i = 0; i < MOST_DEVICES; i++)
        devices[i].index = i;
    pthread_mutex_unlock(&lock);
    return code;
}

int nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    initialised -= initialised > 0;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    return code == 15 ? "GPU is lost" : "stub error";
}

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    snprintf(version, length, "580.00.stub");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    pthread_mutex_lock(&lock);
    load();
    *count = (unsigned int)device_count();
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device **device) {
    double ignored;
    if (index >= MOST_DEVICES)
        return INVALID_ARGUMENT;
    *device = &devices[index];
    return reading(*device, "handle", 0, &ignored);
}

int nvmlDeviceGetUUID(Device *device, char *uuid, unsigned int length) {
    double ignored;
    snprintf(uuid, length, "GPU-00000000-0000-0000-0000-%012d", device->index);
    return reading(device, "uuid", 0, &ignored);
}

int nvmlDeviceGetName(Device *device, char *name, unsigned int length) {
    double ignored;
    snprintf(name, length, "NVIDIA Stub 80GB");
    return reading(device, "name", 0, &ignored);
}

int nvmlDeviceGetUtilizationRates(Device *device, unsigned int *gpu_and_memory) {
    gpu_and_memory[1] = 0;
    return unsigned_reading(device, "utilization", 50, gpu_and_memory);
}

int nvmlDeviceGetEncoderUtilization(Device *device, unsigned int *percent, unsigned int *period_us) {
    *period_us = 1000;
    return unsigned_reading(device, "encoder", 0, percent);
}

int nvmlDeviceGetDecoderUtilization(Device *device, unsigned int *percent, unsigned int *period_us) {
    *period_us = 1000;
    return unsigned_reading(device, "decoder", 0, percent);
}

int nvmlDeviceGetMemoryInfo(Device *device, unsigned long long *total_free_used) {
    double total = 0, used = 0;
    int code = reading(device, "memory_total", 85899345920.0, &total);
    if (code == SUCCESS)
        code = reading(device, "memory_v1_used", 43000000000.0, &used);
    total_free_used[0] = (unsigned long long)total;
    total_free_used[1] = (unsigned long long)(total - used);
    total_free_used[2] = (unsigned long long)used;
    return code;
}

int nvmlDeviceGetMemoryInfo_v2(Device *device, void *memory) {
    struct { unsigned int version; unsigned long long total, reserved, free, used; } *info = memory;
    double total = 0, used = 0;
    if (info->version != 0x02000028)
        return INVALID_ARGUMENT;
    int code = reading(device, "memory_total", 85899345920.0, &total);
    if (code == SUCCESS)
        code = reading(device, "memory_used", 42949672960.0, &used);
    info->total = (unsigned long long)total;
    info->used = (unsigned long long)used;
    info->reserved = 50327328;
    info->free = info->total - info->used - info->reserved;
    return code;
}

int nvmlDeviceGetTemperatureV(Device *device, void *temperature) {
    struct { unsigned int version, sensor; int celsius; } *info = temperature;
    double celsius = 0;
    int code = reading(device, "temperature_v", 55, &celsius);
    info->celsius = (int)celsius;
    return code;
}

int nvmlDeviceGetTemperature(Device *device, unsigned int sensor, unsigned int *celsius) {
    (void)sensor;
    return unsigned_reading(device, "temperature", 55, celsius);
}

int nvmlDeviceGetMarginTemperature(Device *device, void *margin) {
    struct { unsigned int version; int celsius; } *info = margin;
    double celsius = 0;
    int code = reading(device, "margin", 30, &celsius);
    info->celsius = (int)celsius;
    return code;
}

int nvmlDeviceGetTemperatureThreshold(Device *device, unsigned int threshold, unsigned int *celsius) {
    char name[32];
    snprintf(name, sizeof name, "threshold.%u", threshold);
    return unsigned_reading(device, name, threshold == 0 ? 95 : 90, celsius);
}

/* Field ids: 82 memory temperature (unsigned), 193 and 194 shutdown and slowdown beyond the target (signed). */
int nvmlDeviceGetFieldValues(Device *device, int count, void *values) {
    struct Field {
        unsigned int field, scope;
        long long timestamp, latency_us;
        unsigned int type, code;
        union { unsigned int u; int i; double d; } value;
    } *fields = values;
    double ignored;
    int lost = reading(device, "fields", 0, &ignored);
    if (lost != SUCCESS)
        return lost;
    for (int i = 0; i < count; i++) {
        char name[32];
        double value = 0, otherwise = fields[i].field == 82 ? 62 : fields[i].field == 193 ? -8 : -5;
        snprintf(name, sizeof name, "field.%u", fields[i].field);
        fields[i].code = (unsigned int)reading(device, name, otherwise, &value);
        fields[i].type = fields[i].field == 82 ? 1 : 5;
        if (fields[i].type == 1)
            fields[i].value.u = (unsigned int)value;
        else
            fields[i].value.i = (int)value;
    }
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned int *milliwatts) {
    return unsigned_reading(device, "power", 350000, milliwatts);
}

int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned int *milliwatts) {
    return unsigned_reading(device, "power_limit", 700000, milliwatts);
}

int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *millijoules) {
    double value = 0;
    int code = reading(device, "energy", 123456789, &value);
    *millijoules = (unsigned long long)value;
    return code;
}

int nvmlDeviceGetClockInfo(Device *device, unsigned int domain, unsigned int *megahertz) {
    return unsigned_reading(device, domain == 2 ? "memory_clock" : "sm_clock", domain == 2 ? 2619 : 1980, megahertz);
}

static int throttle_reasons(Device *device, const char *name, unsigned long long *reasons) {
    double value = 0;
    int code = reading(device, name, 0, &value);
    *reasons = (unsigned long long)value;
    return code;
}

int nvmlDeviceGetCurrentClocksEventReasons(Device *device, unsigned long long *reasons) {
    return throttle_reasons(device, "event_reasons", reasons);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *reasons) {
    return throttle_reasons(device, "throttle_reasons", reasons);
}

int nvmlDeviceGetTotalEccErrors(Device *device, unsigned int kind, unsigned int counter, unsigned long long *errors) {
    double value = 0;
    int code = counter == 0 ? reading(device, kind == 0 ? "ecc_corrected" : "ecc_uncorrected", 0, &value) : NOT_SUPPORTED;
    *errors = (unsigned long long)value;
    return code;
}

int nvmlEventSetCreate(EventSet **set) {
    double ignored;
    *set = calloc(1, sizeof(EventSet));
    return *set ? reading(&devices[0], "event_set", 0, &ignored) : INVALID_ARGUMENT;
}

int nvmlDeviceRegisterEvents(Device *device, unsigned long long types, EventSet *set) {
    double ignored;
    int code = reading(device, "register_events", 0, &ignored);
    if (code == SUCCESS)
        set->registered[device->index] = types;
    return code;
}

static int next_event(EventSet *set, void *data) {
    struct {
        Device *device;
        unsigned long long type, code;
        unsigned int gpu_instance, compute_instance;
    } *event = data;
    char key[32];
    int found = 0;
    pthread_mutex_lock(&lock);
    load();
    snprintf(key, sizeof key, "event.%d", set->delivered + 1);
    const Line *line = find(key);
    if (line != NULL) {
        int index = (int)line->value;
        set->delivered++;
        found = index < 0 || (set->registered[index] & XID_EVENT);
        event->device = index < 0 ? NULL : &devices[index];
        event->type = XID_EVENT;
        event->code = (unsigned long long)line->second;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

int nvmlEventSetWait_v2(EventSet *set, void *data, unsigned int timeout_ms) {
    struct timespec whole = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L}, pause = {0, 10 * 1000000L};
    if (getenv("NVML_STUB_STATE") == NULL) { /* no events to look for: block like the real driver */
        nanosleep(&whole, NULL);
        return TIMEOUT;
    }
    for (unsigned int waited = 0; waited <= timeout_ms; waited += 10) {
        if (next_event(set, data))
            return SUCCESS;
        nanosleep(&pause, NULL);
    }
    return TIMEOUT;
}

int nvmlEventSetFree(EventSet *set) {
    free(set);
    return SUCCESS;
}
