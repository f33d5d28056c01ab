//! The whole network on real XDP, AF_XDP, TUN devices and NAT: three relays, a client and a service in namespaces.

#[path = "three_hops/bad_input.rs"]
mod bad_input;
#[path = "three_hops/epochs.rs"]
mod epochs;
#[path = "three_hops/hostile.rs"]
mod hostile;
#[path = "three_hops/recovery.rs"]
mod recovery;
#[path = "three_hops/stop.rs"]
mod stop;
#[path = "three_hops/support.rs"]
mod support;
#[path = "three_hops/traffic.rs"]
mod traffic;
#[path = "three_hops/workers.rs"]
mod workers;
