//! Loads, stores and copies of a fixed width at any address: one machine instruction or two each.
//!
//! Numbers are little-endian wherever this runs. Copies pass through registers, so source and target may overlap: everything
//! is read before anything is written.

/// # Safety
///
/// Four bytes at `from` are readable.
#[inline(always)]
pub(super) unsafe fn load32(from: *const u8) -> u32 {
    // SAFETY: as the caller vouches.
    u32::from_le(unsafe { from.cast::<u32>().read_unaligned() })
}

/// # Safety
///
/// Eight bytes at `from` are readable.
#[inline(always)]
pub(super) unsafe fn load64(from: *const u8) -> u64 {
    // SAFETY: as the caller vouches.
    u64::from_le(unsafe { from.cast::<u64>().read_unaligned() })
}

/// # Safety
///
/// Four bytes at `to` are writable.
#[inline(always)]
pub(super) unsafe fn store32(value: u32, to: *mut u8) {
    // SAFETY: as the caller vouches.
    unsafe { to.cast::<u32>().write_unaligned(value.to_le()) }
}

/// # Safety
///
/// Eight bytes at `to` are writable.
#[inline(always)]
pub(super) unsafe fn store64(value: u64, to: *mut u8) {
    // SAFETY: as the caller vouches.
    unsafe { to.cast::<u64>().write_unaligned(value.to_le()) }
}

/// # Safety
///
/// Sixteen bytes at `from` are readable, and sixteen at `to` writable.
#[inline(always)]
pub(super) unsafe fn copy16(from: *const u8, to: *mut u8) {
    // SAFETY: as the caller vouches.
    unsafe { to.cast::<u128>().write_unaligned(from.cast::<u128>().read_unaligned()) }
}

/// Copies `count` bytes, 9 to 16, with loads of no others and one store of sixteen, from which the same loads a little later
/// can be served before it reaches the cache.
///
/// # Safety
///
/// Sixteen bytes at `from` are readable, and sixteen at `to` writable.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn copy9to16(from: *const u8, to: *mut u8, count: usize) {
    use std::arch::x86_64::{_mm_cvtsi32_si128, _mm_loadl_epi64, _mm_srl_epi64, _mm_storeu_si128, _mm_unpacklo_epi64};
    debug_assert!((9..=16).contains(&count));
    // SAFETY: as the caller vouches: both loads of eight bytes end within the sixteen. SSE2 is part of x86-64.
    unsafe {
        let (first, last) = (_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(count - 8).cast()));
        // The low bytes of the last eight are among the first.
        let last = _mm_srl_epi64(last, _mm_cvtsi32_si128(128 - 8 * count as i32));
        _mm_storeu_si128(to.cast(), _mm_unpacklo_epi64(first, last));
    }
}

/// Copies `count` bytes, 9 to 16.
///
/// # Safety
///
/// Sixteen bytes at `from` are readable, and sixteen at `to` writable.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) unsafe fn copy9to16(from: *const u8, to: *mut u8, _count: usize) {
    // SAFETY: as the caller vouches.
    unsafe { copy16(from, to) }
}

/// # Safety
///
/// 32 bytes at `from` are readable, and 32 at `to` writable.
#[inline(always)]
pub(super) unsafe fn copy32(from: *const u8, to: *mut u8) {
    // SAFETY: as the caller vouches.
    unsafe { to.cast::<[u128; 2]>().write_unaligned(from.cast::<[u128; 2]>().read_unaligned()) }
}

/// How many of the sixteen bytes at `one` equal those at `other`, up to the first that does not.
///
/// # Safety
///
/// Sixteen bytes are readable at both.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn common16(one: *const u8, other: *const u8) -> usize {
    use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8};
    // SAFETY: as the caller vouches; SSE2 is part of x86-64.
    let equal =
        unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_loadu_si128(one.cast()), _mm_loadu_si128(other.cast()))) };
    // A jump for the common case lets a loop run on before the bits are counted.
    if equal == 0xffff { 16 } else { (!equal).trailing_zeros() as usize }
}

/// How many of the sixteen bytes at `one` equal those at `other`, up to the first that does not.
///
/// # Safety
///
/// Sixteen bytes are readable at both.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) unsafe fn common16(one: *const u8, other: *const u8) -> usize {
    // SAFETY: as the caller vouches.
    let differing = unsafe { one.cast::<u128>().read_unaligned() ^ other.cast::<u128>().read_unaligned() };
    (u128::from_le(differing).trailing_zeros() / 8) as usize
}
