// Kernels run on the threads that torch's own run on.
#pragma once

namespace truequant {

void use_threads_of_torch();

}  // namespace truequant
