// The part of cuBLASLt that linear needs, found at run time: the library that is there, of CUDA 11, 12 or 13, has this
// interface (https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api), and engines without linears need none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <cuda_runtime_api.h>
#include <library_types.h>

namespace swinopt {

struct CublasLt {
    using Handle = struct cublasLtContext*;
    using MatmulDesc = struct cublasLtMatmulDescOpaque_t*;
    using MatrixLayout = struct cublasLtMatrixLayoutOpaque_t*;
    using Preference = struct cublasLtMatmulPreferenceOpaque_t*;
    using Status = int;  // 0: success

    struct Algorithm {
        std::uint64_t data[8];

        bool operator==(Algorithm const& other) const { return !std::memcmp(data, other.data, sizeof data); }
    };

    struct Heuristic {
        Algorithm algorithm;
        std::size_t workspace_bytes;
        Status state;
        float waves;
        int reserved[4];
    };

    static constexpr int kCompute32F = 68, kComputeTF32 = 77;        // CUBLAS_COMPUTE_32F, _32F_FAST_TF32
    static constexpr int kEpilogue = 7, kBiasPointer = 8;            // CUBLASLT_MATMUL_DESC_*
    static constexpr int kEpilogueBias = 4, kEpilogueGeluBias = 36;  // CUBLASLT_EPILOGUE_*
    static constexpr int kMaxWorkspaceBytes = 1;                     // CUBLASLT_MATMUL_PREF_*
    static constexpr int kReductions = 3;                            // CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK
    static constexpr std::uint32_t kReduceInFloat = 2;               // CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
    static constexpr int kAlignments[] = {5, 6, 7, 8};               // CUBLASLT_MATMUL_PREF_*, of A, B, C and D

    static constexpr int kTileIds = 6;                               // CUBLASLT_ALGO_CAP_TILE_IDS
    enum Setting : int { kTile = 1, kOption = 5, kCluster = 8 };     // CUBLASLT_ALGO_CONFIG_*

    std::size_t (*version)();
    Status (*create)(Handle*);
    Status (*destroy)(Handle);
    Status (*desc_create)(MatmulDesc*, int compute, cudaDataType_t scale);
    Status (*desc_destroy)(MatmulDesc);
    Status (*desc_set)(MatmulDesc, int attribute, void const* value, std::size_t bytes);
    Status (*layout_create)(
        MatrixLayout*, cudaDataType_t type, std::uint64_t rows, std::uint64_t columns, std::int64_t stride);
    Status (*layout_destroy)(MatrixLayout);
    Status (*preference_create)(Preference*);
    Status (*preference_destroy)(Preference);
    Status (*preference_set)(Preference, int attribute, void const* value, std::size_t bytes);
    Status (*heuristic)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d, Preference,
        int asked, Heuristic* found, int* count);
    Status (*check)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d,
        Algorithm const*, Heuristic* result);
    Status (*capability)(Algorithm const*, int capability, void* value, std::size_t bytes, std::size_t* written);
    Status (*set)(Algorithm*, int setting, void const* value, std::size_t bytes);
    Status (*matmul)(Handle, MatmulDesc, void const* alpha, void const* a, MatrixLayout, void const* b, MatrixLayout,
        void const* beta, void const* c, MatrixLayout, void* d, MatrixLayout, Algorithm const*, void* workspace,
        std::size_t workspace_bytes, cudaStream_t);
};

// The newest cuBLASLt that the loader finds and, where there is a GPU, its driver is new enough for; or null. It stays
// loaded.
CublasLt const* cublaslt();

}  // namespace swinopt
