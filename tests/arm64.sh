#!/usr/bin/env bash
# A Python of 64-bit Arm with numpy and onnxruntime, for qemu-user: shows what an exported file computes there.
#
#   tests/arm64.sh build/arm64
#
# Debian's packages and wheels are unpacked into the folder (about 250 MB); nothing is installed. It takes half a minute and more,
# as the network has it. onnxruntime reads /proc/cpuinfo, which must be that of an Arm.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")/.." && pwd)
[ -f "$folder/ready" ] && exit 0
mkdir -p "$folder"/{lists/partial,debs,root/proc,wheels,site}
touch "$folder/status"
apt=(-oAPT::Architecture=arm64 -oAPT::Architectures=arm64 -oDir::State::Lists="$folder/lists" -oDir::State::status="$folder/status")
apt-get "${apt[@]}" update -qq
(cd "$folder/debs" && apt-get "${apt[@]}" download -qq python3.11-minimal libpython3.11-minimal libpython3.11-stdlib python3.11 libc6 \
    libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libcrypt1 libgomp1)
for package in "$folder"/debs/*.deb; do dpkg -x "$package" "$folder/root"; done
pinned=$(grep -ho '^onnxruntime==[0-9.]*' "$here"/requirements/*.txt | head -1)
python3 -m pip download --disable-pip-version-check -q --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
    --platform manylinux2014_aarch64 -d "$folder/wheels" "${pinned:-onnxruntime}" numpy
for wheel in "$folder"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$folder/site"; done
for cpu in 0 1; do
    printf 'processor\t: %s\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n' "$cpu"
done >"$folder/root/proc/cpuinfo"
rm -r "$folder"/{debs,wheels,lists}
touch "$folder/ready"
