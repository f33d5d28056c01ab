//! Statistics of the attacks: plain functions over slices, randomness as an argument.
//!
//! Windows taken side by side are alike whatever they carry, so nothing here takes them for independent: intervals,
//! permutations and folds go by [`Blocks`].

mod blocks;
mod fourier;
mod information;
mod interval;
mod joint;
mod moments;
mod permutation;
mod random;
mod rank;
mod series;
mod special;

pub use blocks::{Blocks, numbered};
pub use fourier::circular_products;
pub use information::{Contingency, entropy, mutual_information, quantile_bins, quantile_edges};
pub use interval::{UNBOUNDED, binomial_interval, bootstrap, jackknife};
pub use joint::{Joint, Resampling, joint};
pub use moments::{mean, quantile, variance};
pub use permutation::{Permuted, looked_again, permutation};
pub use random::{below, normal, shuffle, unit};
pub use rank::{auc, ks, ks_sorted, ks_uniform, ranked, weighted_auc};
pub use series::{autocorrelation, cross_correlation, cusum, glr_mean, glr_variance};
pub use special::{chi_square_p, kolmogorov_p, normal_p};
