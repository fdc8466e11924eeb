// How the trainer's own memory is allocated.
//
// The C library's default maps and unmaps every large tensor, so that each
// step faults its pages in again (about 0.55 ms/MiB). Keeping freed memory is
// worth 20-33 % of a step here.
//
// Source: mallopt(3).

#pragma once

namespace stowage::engine {

// Sets M_MMAP_THRESHOLD 1 GiB, M_TRIM_THRESHOLD 4 GiB, M_TOP_PAD 64 MiB for
// this process. Call once, early. STOWAGE_KEEP_MALLOC=1 leaves the defaults.
void TuneHostAllocator();

// Gives the kernel back every page that only freed memory lies in. For the end
// of a phase whose memory is not needed again: glibc before 2.38 hardly reuses
// freed aligned blocks (tensors are aligned to 64), so a model that is built
// and dropped unit by unit would stay resident whole.
// Blocks: for the walk over the free blocks, well below a millisecond.
void ReturnFreeMemory();

}  // namespace stowage::engine
