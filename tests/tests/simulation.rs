//! Client, entry, middle and exit on virtual time: the engine that the workers run, wires that lose, repeat and bend,
//! and an observer who sees when cells leave and how long they are.

#[path = "simulation/edge.rs"]
mod edge;
#[path = "simulation/net.rs"]
mod net;
#[path = "simulation/node.rs"]
mod node;
#[path = "simulation/scenario.rs"]
mod scenario;

#[path = "simulation/decoys.rs"]
mod decoys;
#[path = "simulation/delays.rs"]
mod delays;
#[path = "simulation/faults.rs"]
mod faults;
#[path = "simulation/hostile.rs"]
mod hostile;
#[path = "simulation/laws.rs"]
mod laws;
#[path = "simulation/lifetimes.rs"]
mod lifetimes;
#[path = "simulation/machines.rs"]
mod machines;
#[path = "simulation/rates.rs"]
mod rates;
#[path = "simulation/relays.rs"]
mod relays;
#[path = "simulation/rogue.rs"]
mod rogue;
#[path = "simulation/slots.rs"]
mod slots;
#[path = "simulation/watermark.rs"]
mod watermark;
