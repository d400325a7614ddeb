// A library with NVIDIA's interface (nvml.h, as go-nvml carries it) that has two GPUs of its own, for the test of the program that loads it. READY is the path of
// the file that keeps the ready state between two runs of the program.
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include "nvml.h"
#include <stdio.h>
#include <string.h>

struct nvmlDevice_st { unsigned int index; };
static struct nvmlDevice_st devices[2] = {{0}, {1}};

nvmlReturn_t nvmlInit_v2(void) { return NVML_SUCCESS; }
nvmlReturn_t nvmlShutdown(void) { return NVML_SUCCESS; }

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    snprintf(version, length, "580.95.05");
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = 2;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (index > 1) return NVML_ERROR_INVALID_ARGUMENT;
    device->handle = &devices[index];
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-%u", device.handle->index);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    snprintf(name, length, "NVIDIA H100 80GB HBM3");
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t *architecture) {
    *architecture = NVML_DEVICE_ARCH_HOPPER;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    memset(pci, 0, sizeof *pci);
    pci->domain = 1, pci->bus = 0x41 + device.handle->index, pci->device = 2;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeState(nvmlConfComputeSystemState_t *state) {
    state->environment = NVML_CC_SYSTEM_ENVIRONMENT_PROD;
    state->ccFeature = NVML_CC_SYSTEM_FEATURE_ENABLED;
    state->devToolsMode = NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeSettings(nvmlSystemConfComputeSettings_t *settings) {
    if (settings->version != nvmlSystemConfComputeSettings_v1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    settings->multiGpuMode = NVML_CC_SYSTEM_MULTIGPU_NVLE;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeGpusReadyState(unsigned int *ready) {
    FILE *f = fopen(READY, "r");
    *ready = f && fgetc(f) == '1';
    if (f) fclose(f);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemSetConfComputeGpusReadyState(unsigned int ready) {
    FILE *f = fopen(READY, "w");
    if (!f) return NVML_ERROR_UNKNOWN;
    fprintf(f, "%u", ready);
    fclose(f);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetConfComputeGpuCertificate(nvmlDevice_t device, nvmlConfComputeGpuCertificate_t *certificate) {
    certificate->attestationCertChainSize = snprintf((char *)certificate->attestationCertChain, sizeof certificate->attestationCertChain, "chain %u", device.handle->index);
    return NVML_SUCCESS;
}

// The report begins with the nonce, and fills the buffer to its last byte.
nvmlReturn_t nvmlDeviceGetConfComputeGpuAttestationReport(nvmlDevice_t device, nvmlConfComputeGpuAttestationReport_t *report) {
    memset(report->attestationReport, 'a' + device.handle->index, sizeof report->attestationReport);
    memcpy(report->attestationReport, report->nonce, sizeof report->nonce);
    report->attestationReportSize = sizeof report->attestationReport;
    return NVML_SUCCESS;
}
