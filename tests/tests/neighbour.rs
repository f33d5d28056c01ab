//! Next hops as a real kernel resolves them.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use relay_tests::Netns;
use relay_tests::privilege::root_or_skip;
use relay_user::neighbour::{Change, NeighbourError, Resolver};

const LOCAL_MAC: [u8; 6] = [2, 0, 0, 0, 0xed, 1];
const REMOTE_MAC: [u8; 6] = [2, 0, 0, 0, 0xed, 2];

/// Deletes the two namespaces when the test is over.
struct Pair([Netns; 2]);

impl Drop for Pair {
    fn drop(&mut self) {
        for netns in &self.0 {
            if let Err(error) = Netns::delete(netns.name()) {
                eprintln!("{error:#}");
            }
        }
    }
}

fn ip(netns: &Netns, arguments: &str) -> Result<()> {
    let status = netns.spawn(Command::new("ip").args(arguments.split(' ')))?.wait()?;
    ensure!(status.success(), "ip {arguments}: {status}");
    Ok(())
}

#[test]
fn next_hops_are_found_and_followed() -> Result<()> {
    if !root_or_skip("next_hops_are_found_and_followed") {
        return Ok(());
    }
    let name = |end| format!("ewt-{}-nb-{end}", std::process::id());
    let pair = Pair([Netns::create(&name('a'))?, Netns::create(&name('b'))?]);
    let [near, far] = &pair.0;
    let far_name = far.name();
    ip(
        near,
        &format!(
            "link add ewt0 address 02:00:00:00:ed:01 type veth peer name ewt0 address 02:00:00:00:ed:02 netns {far_name}"
        ),
    )?;
    for (netns, v4, v6) in [(near, "192.0.2.1/24", "2001:db8::1/64"), (far, "192.0.2.2/24", "2001:db8::2/64")]
    {
        ip(netns, &format!("addr add {v4} dev ewt0"))?;
        ip(netns, &format!("addr add {v6} dev ewt0 nodad"))?;
        ip(netns, "link set ewt0 up")?;
        ip(netns, "link set lo up")?;
    }
    ip(near, "route add 203.0.113.0/24 via 192.0.2.2")?;

    near.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let resolver = Resolver::new("ewt0").await?;
            let mut watch = resolver.watch()?;
            let cases = [
                ("192.0.2.2", "192.0.2.2", "192.0.2.1"),
                ("203.0.113.5", "192.0.2.2", "192.0.2.1"),
                ("2001:db8::2", "2001:db8::2", "2001:db8::1"),
                ("::ffff:192.0.2.2", "192.0.2.2", "192.0.2.1"),
            ];
            for (remote, next_hop, local) in cases {
                let found = resolver.resolve(remote.parse()?).await?;
                assert_eq!((found.local_mac, found.remote_mac, found.vlan), (LOCAL_MAC, REMOTE_MAC, None));
                assert_eq!(found.next_hop, next_hop.parse::<IpAddr>()?);
                assert_eq!(found.local, local.parse::<IpAddr>()?);
            }

            // The neighbour gets another MAC address, by hand; the watch tells, and resolving finds it.
            let moved: [u8; 6] = [2, 0, 0, 0, 0xed, 9];
            ip(near, "neigh replace 192.0.2.2 lladdr 02:00:00:00:ed:09 dev ewt0 nud reachable")?;
            let wanted = Change { address: "192.0.2.2".parse()?, mac: Some(moved) };
            tokio::time::timeout(Duration::from_secs(10), async {
                loop {
                    let change = watch.next().await.context("the watch ended")?;
                    if change == wanted {
                        return anyhow::Ok(());
                    }
                }
            })
            .await
            .context("the change was not told")??;
            assert_eq!(resolver.resolve("203.0.113.5".parse()?).await?.remote_mac, moved);

            let nobody = resolver.resolve("192.0.2.77".parse()?).await.unwrap_err();
            assert!(matches!(nobody, NeighbourError::Unreachable { .. }), "{nobody}");
            assert!(!nobody.to_string().contains("192.0.2"), "{nobody}");
            for unrouted in ["198.51.100.1", "192.0.2.1"] {
                let error = resolver.resolve(unrouted.parse()?).await.unwrap_err();
                assert!(matches!(error, NeighbourError::NoRoute { .. }), "{unrouted}: {error}");
            }
            let missing = Resolver::new("ewt9").await.unwrap_err();
            assert!(matches!(missing, NeighbourError::NoInterface { .. }), "{missing}");
            anyhow::Ok(())
        })
    })
}
