use super::*;
use crate::config::ConfigError;
use std::path::Path;

const RELAYS: [(&str, &str); 3] = [("entry", "192.0.2.1"), ("middle", "192.0.2.2"), ("exit", "192.0.2.3")];

/// Entry, middle and exit in a row, with these two classes.
fn network(clients: &str, trunks: &str) -> NetworkDocument {
    NetworkDocument::parse_unverified(Path::new("network.toml"), &network_text(clients, trunks)).unwrap()
}

fn network_text(clients: &str, trunks: &str) -> String {
    let mut text = format!(
        "version = 1\nepoch = 3\nvalid_from = \"2026-01-01T00:00:00Z\"\nvalid_until = \"2027-01-01T00:00:00Z\"\n\
         cell_len = 1360\nsuite = 1\n[classes.standard]\n{clients}\n[classes.trunk]\n{trunks}\n"
    );
    for (number, (name, address)) in (1..).zip(RELAYS) {
        text += &format!(
            "[[relays]]\nid = \"{number:032x}\"\nname = \"{name}\"\naddress = \"{address}:7443\"\n\
             key = \"{number:064x}\"\nroles = [\"{name}\"]\n"
        );
    }
    for pair in ["[\"entry\", \"middle\"]", "[\"middle\", \"exit\"]"] {
        text += &format!("[[trunks]]\nbetween = {pair}\nclass = \"trunk\"\nlanes = 2\n");
    }
    text
}

fn usual() -> NetworkDocument {
    network("rate = 1500\nschedule = \"jittered\"", "rate = 2000\nschedule = \"constant\"")
}

fn client(network: &NetworkDocument, cover: &str) -> Plan {
    let operator = "0".repeat(64);
    let text = format!(
        "network = \"network.toml\"\noperator = \"{operator}\"\nclass = \"standard\"\ncover = \"{cover}\"\n\
         [control]\nsocket = \"c.sock\"\n[tun]\nname = \"ew0\"\n"
    );
    Plan::of_client(&ClientConfig::parse(Path::new("client.toml"), &text).unwrap(), network).unwrap()
}

fn relay(network: &NetworkDocument, name: &str, workers: u16) -> anyhow::Result<Plan> {
    let operator = "0".repeat(64);
    let text = format!(
        "name = \"{name}\"\nkey = \"r.key\"\nnetwork = \"network.toml\"\noperator = \"{operator}\"\n\
         [datapath]\ninterface = \"eth0\"\nmode = \"native\"\nbind = \"zero-copy\"\n[worker]\ncount = {workers}\n\
         [control]\nsocket = \"r.sock\"\n"
    );
    Plan::of_relay(&RelayConfig::parse(Path::new("relay.toml"), &text).unwrap(), network)
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= expected.abs() * 1e-4, "{found} is not {expected}");
}

#[test]
fn a_clients_plan_is_what_the_hand_computes() {
    let plan = client(&usual(), "circuit");
    assert!(plan.works(), "{:?}", plan.problems);
    assert_eq!((plan.kind, plan.name.as_str(), plan.epoch, plan.links.len()), ("client", "standard", 3, 1));
    assert_eq!((plan.links[0].to.as_str(), plan.links[0].cells_per_second), ("entry", 1500));
    // 1426 bytes a cell on the wire, 1402 as counted.
    near(plan.links[0].mbit_per_second_each_way, 17.112);
    near(plan.links[0].gb_per_month_each_way, 5450.976);
    let [out, home] = &plan.latency[..] else { panic!("two ways") };
    assert_eq!((out.hops.len(), home.hops.len()), (3, 3));
    let hops = |way: &Way| way.hops.iter().map(|hop| format!("{}-{}", hop.from, hop.to)).collect::<Vec<_>>();
    assert_eq!(hops(out), ["client-entry", "entry-middle", "middle-exit"]);
    assert_eq!(hops(home), ["exit-middle", "middle-entry", "entry-client"]);
    // 200 µs of lead, and 7/12 of 666.7 µs.
    assert!((out.hops[0].mean_us / 588.9 - 1.0).abs() < 0.02, "{}", out.hops[0].mean_us);
    assert!(out.p99_us > out.mean_us && home.mean_us > out.mean_us);
    let goodput = plan.goodput.as_ref().unwrap();
    near(goodput.out_mbit_per_second, 14.943_977);
    near(goodput.home_mbit_per_second, 14.885_602);
    // UDP sockets: 1 s / 201,000, and five passes of 153 ns more than a relay.
    assert_eq!(plan.cores.len(), 1);
    near(plan.cores[0].cores, 0.010_762_7);
    assert_eq!((plan.memory.links, plan.memory.circuits), (3101, 1904));
    assert_eq!((plan.leakage.classes, plan.leakage.bits_per_day), (1, Some(0.0)));
}

#[test]
fn without_circuit_cover_the_exit_waits_for_its_own_slots() {
    let plan = client(&usual(), "link");
    let home = &plan.latency[1];
    assert!((home.hops[0].mean_us / 450.0 - 1.0).abs() < 0.02, "{}", home.hops[0].mean_us);
    near(plan.goodput.unwrap().home_mbit_per_second, 14.943_977);
}

#[test]
fn poisson_keeps_slots_free() {
    let network = network("rate = 1500\nschedule = \"poisson\"", "rate = 4000\nschedule = \"constant\"");
    let plan = client(&network, "circuit");
    near(plan.goodput.unwrap().home_mbit_per_second, 14.943_977 * 7.0 / 8.0);
    // 7/8 of 4000 are two circuits, on each of two lanes.
    assert_eq!(relay(&network, "middle", 2).unwrap().links[0].circuits, Some(4));
}

#[test]
fn a_relays_plan_is_what_the_hand_computes() {
    let plan = relay(&usual(), "entry", 2).unwrap();
    assert!(plan.works(), "{:?}", plan.problems);
    let trunk = &plan.links[0];
    assert_eq!((trunk.to.as_str(), trunk.cells_per_second, trunk.circuits), ("middle", 4000, Some(2)));
    near(trunk.mbit_per_second_each_way, 45.632);
    assert_eq!(plan.links[1].to, "each client");
    // 4000 cells of the trunk, 3000 of two clients, 757.58 ns each, at 80 %.
    let cores: Vec<f64> = plan.cores.iter().map(|cores| cores.cores).collect();
    near(cores[0], 4000.0 * 757.576e-9 / 0.8);
    near(cores[1], 7000.0 * 757.576e-9 / 0.8);
    assert_eq!(plan.cores[1].when, "and 2 clients");
    let all = plan.all_links.as_ref().unwrap();
    assert_eq!((all.what.as_str(), all.cells_per_second), ("all trunks and 2 clients", 7000));
    near(all.mbit_per_second_each_way, 7000.0 * 1426.0 * 8.0 / 1e6);
    near(all.gb_per_month_each_way, 7000.0 * 1402.0 * 2.592e-3);
    // Two lanes and two clients; two circuits.
    assert_eq!((plan.memory.links, plan.memory.circuits), (4 * 3101, 2 * 1904));
    let middle = relay(&usual(), "middle", 2).unwrap();
    assert_eq!(middle.links.iter().map(|link| link.to.as_str()).collect::<Vec<_>>(), ["entry", "exit"]);
    assert_eq!(middle.cores.len(), 1, "a middle has no clients");
}

#[test]
fn what_cannot_work_is_a_problem() {
    let narrow = network("rate = 1500\nschedule = \"constant\"", "rate = 1500\nschedule = \"constant\"");
    for plan in [relay(&narrow, "entry", 1).unwrap(), client(&narrow, "circuit")] {
        assert!(!plan.works());
        assert!(
            plan.problems[0].contains("has 1494 cells/s for circuits, and one takes 1500"),
            "{:?}",
            plan.problems
        );
    }
    let wide = network("rate = 1500\nschedule = \"constant\"", "rate = 200000\nschedule = \"constant\"");
    assert!(relay(&wide, "entry", 1).unwrap().works());
    // Two lanes of 200,000 and more are half of a core by zero-copy, but many clients' links are not.
    let fast = network("rate = 9000\nschedule = \"constant\"", "rate = 200000\nschedule = \"constant\"");
    let plan = relay(&fast, "entry", 1).unwrap();
    let full = plan.cores.last().unwrap();
    assert_eq!((full.when.as_str(), full.cells_per_second), ("and 44 clients", 796_000.0));
    assert!(plan.works(), "{:?}", plan.problems);
    let error = relay(&usual(), "nobody", 1).unwrap_err();
    assert_eq!(error.downcast_ref::<ConfigError>().unwrap().key.as_deref(), Some("name"));
}

#[test]
fn a_choice_of_classes_is_bounded_in_bits() {
    let trunks = "rate = 2000\nschedule = \"constant\"\n[classes.light]\nrate = 300\nschedule = \"jittered\"\n\
                  [clients]\nclass = \"standard\"\nadaptive = { classes = [\"light\", \"standard\"], epsilon = 1 }";
    let network = network("rate = 1500\nschedule = \"jittered\"", trunks);
    let policy = client(&network, "circuit\"\npolicy = \"adaptive");
    let hourly = 24.0 * crate::rates::Bound::private(2, 1.0).bits();
    near(policy.leakage.bits_per_day.unwrap(), hourly);
    assert_eq!((policy.leakage.policy.as_str(), policy.leakage.classes), ("adaptive", 2));
    // A relay follows whoever chooses; a client that does not choose tells nothing.
    near(relay(&network, "entry", 1).unwrap().leakage.bits_per_day.unwrap(), hourly);
    assert_eq!(client(&network, "circuit").leakage.bits_per_day, Some(0.0));
    // Circuits are counted in the clients' fastest class.
    assert_eq!(relay(&network, "entry", 1).unwrap().links[0].circuits, Some(2));
}

#[test]
fn steps_for_loss_take_room_for_circuits() {
    let lower = |rate: u32| {
        let trunks = format!(
            "rate = 4000\nschedule = \"constant\"\n[classes.low]\nrate = {rate}\nschedule = \"constant\"\n\
                              [clients]\nclass = \"standard\""
        );
        let text = network_text("rate = 1500\nschedule = \"jittered\"", &trunks);
        text.replace("lanes = 2\n", "lanes = 2\nlower = [\"low\"]\n")
    };
    let read = |text: &str| NetworkDocument::parse_unverified(Path::new("network.toml"), text);
    let network = read(&lower(1800)).unwrap();
    // 4000 cells would be two circuits on each of two lanes; 1800 are one.
    assert_eq!(relay(&network, "entry", 2).unwrap().links[0].circuits, Some(2));
    assert_eq!(read(&lower(1500)).unwrap_err().key.as_deref(), Some("trunks.lower"));
}

#[test]
fn workers_are_counted_against_the_heaviest_load() {
    let load = |datapath, cores| Cores {
        when: "now".to_owned(),
        datapath,
        cells_per_second: 1.0,
        cores,
        source: "",
    };
    let loads = [load("a", 0.5), load("b", 9.0), load("a", 1.5)];
    assert!(too_few_workers(&loads, 1).unwrap().starts_with("now: 1.5 cores by a"));
    assert_eq!(too_few_workers(&loads, 2), None);
}

#[test]
fn both_shapes_say_everything_and_no_address() {
    for plan in [client(&usual(), "circuit"), relay(&usual(), "entry", 2).unwrap()] {
        let (table, json) = (plan.table(), serde_json::to_string(&plan).unwrap());
        for (_, address) in RELAYS {
            assert!(!table.contains(address) && !json.contains(address));
        }
        for part in [
            "jittered",
            "Mbit/s each way",
            "latency added",
            "cores (estimate)",
            "memory",
            "leakage  0.000 bits",
        ] {
            assert!(table.contains(part), "{part} is missing in\n{table}");
        }
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        for key in ["links", "latency", "cores", "memory", "leakage", "problems", "notes"] {
            assert!(!json[key].is_null(), "{key}");
        }
    }
}
