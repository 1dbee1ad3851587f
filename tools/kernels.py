#!/usr/bin/env python
"""Compiles the CUDA kernels for every GPU architecture of a wheel, and checks the result without a GPU:
`python tools/kernels.py`.

- Every backward kernel that should add by atomics has atomics in the code for every architecture.
- Registers, spills and occupancy of each kernel are compared with the table in docs/kernels.md. What became
  worse is printed. `--write` puts the new table there.

It needs nvcc, and cuobjdump of the toolkit or of triton. It takes about five minutes on two cores.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from wheels import ROOT, copy_sources

CSRC = ROOT / 'roi_plugins' / 'ops' / 'csrc'
DOCUMENT = ROOT / 'docs' / 'kernels.md'
TABLE = re.compile(r'(?<=<!-- begin: make kernels -->\n).*(?=<!-- end -->)', re.DOTALL)


@dataclass(frozen=True)
class Processor:
    """The limits of a streaming multiprocessor (CUDA C++ Programming Guide, Compute Capabilities).

    The register file and its granularity are the same for all of the architectures here.

    Attributes:
        warps: how many can be resident.
        blocks: how many can be resident.
        shared: shared memory, KiB.
        reserved: shared memory that the system takes of each block, KiB.
    """

    warps: int
    blocks: int
    shared: int
    reserved: int = 1

    def occupancy(self, registers: int, shared: int, threads: int) -> int:
        """Computes how many warps of a kernel can be resident.

        Args:
            registers: of a thread.
            shared: bytes of shared memory of a block.
            threads: of a block.
        """
        warps = -(-threads // 32)
        # Warps get registers 256 at a time. A warp is in one of the four parts of the register file.
        of_warp = -(-registers * 32 // 256) * 256
        by_registers = (65536 // 4 // of_warp) * 4 // warps
        by_shared = self.shared * 1024 // (-(-shared // 128) * 128 + self.reserved * 1024 or 1)
        return warps * min(self.warps // warps, self.blocks, by_registers, by_shared)


PROCESSORS = {
    'sm_75': Processor(32, 16, 64, reserved=0),
    'sm_80': Processor(64, 32, 164),
    'sm_86': Processor(48, 16, 100),
    'sm_90': Processor(64, 32, 228),
    'sm_100': Processor(64, 32, 228),
    'sm_120': Processor(48, 24, 100),
}


@dataclass(frozen=True)
class Resources:
    """What a kernel uses according to ptxas: the number of registers, and the other resources in bytes."""

    registers: int
    stack: int
    spills: int
    shared: int


def sentence(text):
    sys.exit(f'kernels: {text}')


def build(folder: Path) -> tuple[Path, str]:
    """Compiles the library for all architectures. Returns its path and the output of ptxas."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copy_sources(folder)
    flags = f'{os.environ.get("NVCC_APPEND_FLAGS", "")} -Xptxas -v'
    required = {'ROI_PLUGINS_CUDA': '1', 'ROI_PLUGINS_REQUIRE_EXTENSION': '1', 'NVCC_APPEND_FLAGS': flags}
    log = folder / 'build.log'
    print(f'compiling (log: {log})', flush=True)
    with log.open('w') as file:
        command = [sys.executable, 'setup.py', 'build_ext', '--inplace']
        code = subprocess.call(command, cwd=folder, stdout=file, stderr=file, env={**os.environ, **required})
    if code:
        print(*log.read_text().splitlines()[-20:], sep='\n', file=sys.stderr)
        sentence(f'the kernels do not compile; the whole log is in {log}')
    return folder / 'roi_plugins/ops/_C.so', log.read_text()


def demangled(names: list[str]) -> dict[str, str]:
    """Makes the names of kernels readable: `work_kernel<AverageForward<float, true>>`."""
    run = subprocess.run(['c++filt'], input='\n'.join(names), capture_output=True, text=True, check=True)
    readable = {}
    for name, text in zip(names, run.stdout.splitlines(), strict=True):
        text = re.sub(r'\(anonymous namespace\)::|roi_plugins::|c10::|^void ', '', text)
        readable[name] = re.sub(r' (?=>)', '', text.split('(', 1)[0])
    return readable


def resources(log: str) -> dict[str, dict[str, Resources]]:
    """Reads the resources of each kernel, by architecture, from the output of `-Xptxas -v`."""
    found = re.findall(
        r"Compiling entry function '(\w+)' for '(sm_\d+)'\n.*\n"
        r' *(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n'
        r'.*Used (\d+) registers(?:.*?(\d+) bytes smem)?',
        log,
    )
    names = demangled(sorted({kernel for kernel, *_ in found}))
    table = {}
    for kernel, arch, stack, stores, loads, registers, shared in found:
        table.setdefault(names[kernel], {})[arch] = Resources(
            int(registers), int(stack), int(stores) + int(loads), int(shared or 0)
        )
    return table


def threads_of(kernel: str) -> int:
    header, name = ('work.h', 'kThreads') if kernel.startswith('work_kernel') else ('grid.h', 'kItemThreads')
    return int(re.search(rf'constexpr int {name} = (\d+);', (CSRC / 'cuda' / header).read_text()).group(1))


def cuobjdump() -> str:
    toolkit = os.environ.get('CUDA_HOME', '/usr/local/cuda')
    folders = [os.environ.get('PATH', ''), f'{toolkit}/bin']
    try:
        import triton

        folders.append(str(Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'))
    except ImportError:
        pass
    found = shutil.which('cuobjdump', path=os.pathsep.join(folders))
    return found or sentence('no cuobjdump was found; triton brings one: pip install triton')


def atomics(assembly: str) -> dict[str, int]:
    """Counts the atomic additions to global memory in each kernel, from the output of `cuobjdump -sass`."""
    parts = re.split(r'^\s*Function : (\w+)$', assembly, flags=re.MULTILINE)
    names = demangled(parts[1::2]) if len(parts) > 1 else {}
    return {
        names[kernel]: len(re.findall(r'\b(?:REDG?|ATOMG?)\.\S*ADD', code))
        for kernel, code in zip(parts[1::2], parts[2::2], strict=True)
    }


def without_atomics(arch: str, counts: dict[str, int]) -> list[str]:
    """Lists the kernels of an architecture that add to sums (cuda/atomics.h) and have no atomics."""
    adding = {kernel: count for kernel, count in counts.items() if 'Sum<' in kernel}
    if not adding:
        return [f'{arch}: no kernel adds by atomics, and the sources have some']
    return [f'{arch}: {kernel} adds by atomics and has none' for kernel, count in adding.items() if not count]


def format_table(table: dict[str, dict[str, Resources]]) -> str:
    lines = [
        f'| kernel | {" | ".join(PROCESSORS)} | stack | spills | shared |',
        '|---' * (len(PROCESSORS) + 4) + '|',
    ]
    for kernel in sorted(table):
        of, threads = table[kernel], threads_of(kernel)
        cells = [
            f'{of[arch].registers} / {processor.occupancy(of[arch].registers, of[arch].shared, threads)}'
            for arch, processor in PROCESSORS.items()
        ]
        most = [max(getattr(r, what) for r in of.values()) for what in ('stack', 'spills', 'shared')]
        lines.append(f'| `{kernel}` | {" | ".join(cells)} | {" | ".join(map(str, most))} |')
    return '\n'.join(lines) + '\n'


def worse(table: str, earlier: str) -> list[str]:
    """Lists what has more registers, stack or spills, or fewer warps, than in an earlier table."""

    def rows(text):
        return {cells[1]: cells[2:-1] for cells in (line.split('|') for line in text.splitlines()[2:])}

    before, found = rows(earlier), []
    columns = (*PROCESSORS, 'stack', 'spills', 'shared')
    for kernel, cells in rows(table).items():
        for name, cell, old in zip(columns, cells, before.get(kernel, cells), strict=True):
            new, was = ([int(n) for n in re.findall(r'\d+', c)] for c in (cell, old))
            if new[0] > was[0] or new[1:] < was[1:]:
                found.append(f'{kernel.strip()} {name}: {old.strip()} -> {cell.strip()}')
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / 'build' / 'kernels', help='default: %(default)s')
    parser.add_argument('--write', action='store_true', help='put the table into docs/kernels.md')
    args = parser.parse_args(argv)
    tool = cuobjdump()
    library, log = build(args.out)
    table = resources(log)
    wrong = []
    for kernel, of in table.items():
        wrong += [f'{kernel} was not compiled for {arch}' for arch in PROCESSORS if arch not in of]
    has_atomics = any('atomicAdd' in file.read_text() for file in CSRC.glob('cuda/*'))
    for arch in PROCESSORS if has_atomics else ():
        command = [tool, '-sass', '-arch', arch, str(library)]
        counts = atomics(subprocess.run(command, capture_output=True, text=True).stdout)
        print(f'{arch}: {len(counts)} kernels, {sum(map(bool, counts.values()))} with atomics', flush=True)
        wrong += without_atomics(arch, counts)
    if wrong or not table:
        sentence('\n'.join(wrong) or f'ptxas said nothing of a kernel; see {args.out / "build.log"}')
    text = format_table(table)
    (args.out / 'table.md').write_text(text)
    document = DOCUMENT.read_text()
    for line in worse(text, TABLE.search(document).group()):
        print('worse:', line)
    if args.write:
        DOCUMENT.write_text(TABLE.sub(lambda _: text, document))
    print(f'{len(table)} kernels for {", ".join(PROCESSORS)}; their table is in {args.out / "table.md"}')


if __name__ == '__main__':
    main()
