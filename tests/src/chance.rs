//! Chance that nobody has to be kept from guessing.

/// A number that shows nothing of `state`: what SplitMix64 makes of a state that went on by [`STEP`].
pub const fn mixed(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// What SplitMix64 adds to its state for each number.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
