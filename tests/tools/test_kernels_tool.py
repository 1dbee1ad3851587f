"""What `make kernels` makes of what ptxas and cuobjdump print; it itself needs nvcc, and runs in CI."""

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.fixture(scope='module')
def kernels():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        return importlib.import_module('kernels')


ADDING = (
    '_ZN11roi_plugins11work_kernelINS_47_GLOBAL__N__c2e0abc5_14_roi_extract_cu_4afd3b3715'
    'AverageBackwardIfNS_11FloatingSumIfEELb1EEEEEvT_'
)
READABLE = 'work_kernel<AverageBackward<float, FloatingSum<float>, true>>'
LOG = f"""ptxas info    : Compiling entry function '{ADDING}' for 'sm_75'
ptxas info    : Function properties for {ADDING}
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 5248 bytes smem, 1336 bytes cmem[0]
ptxas info    : Compile time = 353.420 ms
ptxas info    : Compiling entry function '{ADDING}' for 'sm_90'
ptxas info    : Function properties for {ADDING}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers
"""


def test_what_ptxas_says(kernels):
    assert kernels.resources(LOG) == {
        READABLE: {
            'sm_75': kernels.Resources(registers=64, stack=16, spills=20, shared=5248),
            'sm_90': kernels.Resources(registers=72, stack=0, spills=0, shared=0),
        }
    }


@pytest.mark.parametrize(
    ('arch', 'registers', 'shared', 'threads', 'warps'),
    [
        # Of NVIDIA's occupancy calculator, and of a review of these kernels.
        ('sm_90', 32, 0, 256, 64),
        ('sm_90', 114, 5248, 128, 16),
        ('sm_90', 92, 5248, 128, 20),
        ('sm_90', 168, 5248, 128, 12),
        ('sm_90', 72, 5248, 128, 28),
        ('sm_90', 156, 0, 256, 8),
        ('sm_75', 16, 0, 256, 32),
        ('sm_86', 16, 0, 256, 48),
        ('sm_80', 32, 48 * 1024, 256, 24),
        ('sm_75', 32, 32 * 1024, 128, 8),
    ],
)
def test_occupancy(kernels, arch, registers, shared, threads, warps):
    assert kernels.PROCESSORS[arch].occupancy(registers, shared, threads) == warps


SASS = """
	code for sm_90
		Function : {}
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;
{}
"""


@pytest.mark.parametrize(
    ('instruction', 'count'),
    [
        ('REDG.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R5 ;', 1),
        ('RED.E.ADD.64.STRONG.GPU [R2], R4 ;', 1),
        ('ATOMG.E.ADD.F32.FTZ.RN.STRONG.GPU PT, R9, [R2], R5 ;', 1),
        ('REDUX.SUM UR5, R3 ;', 0),
        ('ATOMS.ADD R3, [R2], R5 ;', 0),
        ('EXIT ;', 0),
    ],
)
def test_a_backward_kernel_without_atomics_is_found(kernels, instruction, count):
    counts = kernels.atomics(SASS.format(ADDING, instruction))
    assert counts == {READABLE: count}
    assert bool(kernels.without_atomics('sm_90', counts)) == (count == 0)


def test_no_kernel_that_adds_is_found_too(kernels):
    for counts in ({}, {'from_fixed_point<float>': 0}):
        (found,) = kernels.without_atomics('sm_90', counts)
        assert 'no kernel adds' in found


def test_what_became_worse_is_named(kernels):
    def table(**changed):
        given = {'registers': 64, 'stack': 0, 'spills': 0, 'shared': 0} | changed
        return kernels.format_table({READABLE: dict.fromkeys(kernels.PROCESSORS, kernels.Resources(**given))})

    assert kernels.worse(table(), table()) == kernels.worse(table(registers=56), table()) == []
    assert kernels.worse(table(), '') == []
    assert f'`{READABLE}` sm_90: 64 / 32 -> 72 / 28' in kernels.worse(table(registers=72), table())
    assert kernels.worse(table(spills=8), table()) == [f'`{READABLE}` spills: 0 -> 8']
