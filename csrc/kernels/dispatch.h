// Which instruction set runs.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace truequant {

// The kernels in use: the widest that this CPU and this build have, unless another level was chosen.
const Kernels& kernels();

// Names of the levels that run here, from the widest to "portable".
std::vector<std::string> levels();

// Chooses a level by name; false where it does not run here.
bool choose(const std::string& name);

}  // namespace truequant
