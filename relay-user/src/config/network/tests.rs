use super::*;
use crate::engine::schedule::{Law, Pattern};
use proptest::prelude::*;
use zeroize::Zeroizing;

pub(in crate::config) const NOW: Timestamp = Timestamp(1_800_000_000);

pub(in crate::config) fn operator() -> OperatorKey {
    OperatorKey::from_seed(Zeroizing::new([5; 32]))
}

/// Entry, middle and exit in a row.
pub(in crate::config) fn body(keys: [&[u8; 32]; 3]) -> String {
    let mut text = r#"version = 1
epoch = 1
valid_from = "2026-01-01T00:00:00Z"
valid_until = "2027-06-01T00:00:00Z"
cell_len = 1360
suite = 1

[classes.standard]
rate = 1500
schedule = "jittered"

[classes.trunk]
rate = 2000
schedule = "constant"
"#
    .to_owned();
    for (index, (name, key)) in ["entry", "middle", "exit"].into_iter().zip(keys).enumerate() {
        text += &format!(
            "\n[[relays]]\nid = \"{:032x}\"\nname = \"{name}\"\naddress = \"192.0.2.{}:7443\"\nkey = \"{}\"\nroles = [\"{name}\"]\n",
            index + 1,
            index + 1,
            hex::encode(key)
        );
    }
    for between in [r#"["entry", "middle"]"#, r#"["middle", "exit"]"#] {
        text += &format!("\n[[trunks]]\nbetween = {between}\nclass = \"trunk\"\n");
    }
    text
}

fn plain() -> String {
    body([&[1; 32], &[2; 32], &[3; 32]])
}

fn file() -> &'static Path {
    Path::new("network.toml")
}

fn signed_at(text: &str, now: Timestamp) -> Result<NetworkDocument, ConfigError> {
    NetworkDocument::parse_signed(file(), &sign(text, &operator()), &operator().public(), now)
}

#[test]
fn a_document_is_read() {
    let document = signed_at(&plain(), NOW).unwrap();
    assert_eq!(document.classes["standard"], Class { rate: 1500, schedule: Law::Jittered });
    assert_eq!(document.relays.len(), 3);
    let entry = document.relay("entry").unwrap();
    assert_eq!(entry.address, "192.0.2.1:7443".parse().unwrap());
    assert_eq!(document.relay_by_id(&entry.id), Some(entry));
    assert_eq!(document.trunk("middle", "entry"), document.trunk("entry", "middle"));
    assert!(document.trunk("entry", "middle").is_some());
    assert_eq!(document.trunk("entry", "exit"), None);
    assert_eq!(document.suite, Suite::Aes256Gcm);
}

#[test]
fn a_document_holds_in_its_time_only() {
    let from: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let until: Timestamp = "2027-06-01T00:00:00Z".parse().unwrap();
    assert!(signed_at(&plain(), from).is_ok());
    assert!(signed_at(&plain(), Timestamp(until.0 - 1)).is_ok());
    let early = signed_at(&plain(), Timestamp(from.0 - 1)).unwrap_err();
    assert_eq!((early.key.as_deref(), early.line), (Some("valid_from"), Some(4)));
    let late = signed_at(&plain(), until).unwrap_err();
    assert_eq!((late.key.as_deref(), late.line), (Some("valid_until"), Some(5)));
    assert!(late.what.contains("expired at 2027-06-01T00:00:00Z"), "{late}");
}

#[test]
fn a_change_of_any_byte_breaks_the_signature() {
    let signed = sign(&plain(), &operator());
    assert_eq!(verify(&signed, &operator().public()), Ok(()));
    for index in 0..signed.len() {
        let mut bytes = signed.clone().into_bytes();
        bytes[index] = if bytes[index] == b'1' { b'2' } else { b'1' };
        assert!(verify(&String::from_utf8(bytes).unwrap(), &operator().public()).is_err(), "byte {index}");
    }
    let shorter = &signed[..signed.len() - 1];
    assert_eq!(verify(shorter, &operator().public()), Err(SignatureError::Wrong));
}

#[test]
fn another_operators_signature_is_refused() {
    let other = OperatorKey::from_seed(Zeroizing::new([6; 32]));
    let signed = sign(&plain(), &other);
    let error = NetworkDocument::parse_signed(file(), &signed, &operator().public(), NOW).unwrap_err();
    assert!(error.to_string().starts_with("network.toml:1: is not signed by this operator"), "{error}");
    assert_eq!(verify(&plain(), &operator().public()), Err(SignatureError::Missing));
    assert_eq!(verify("", &operator().public()), Err(SignatureError::Missing));
    let broken = format!("{SIGNATURE_PREFIX}00\n");
    assert_eq!(verify(&broken, &operator().public()), Err(SignatureError::Malformed));
}

#[test]
fn signing_again_replaces_the_signature() {
    let once = sign(&plain(), &operator());
    assert_eq!(sign(&once, &operator()), once);
}

#[test]
fn each_mistake_is_refused_at_its_place() {
    for (from, to, key, line) in [
        ("version = 1", "version = 2", "version", 1),
        ("cell_len = 1360", "cell_len = 1361", "cell_len", 5),
        ("suite = 1", "suite = 3", "suite", 6),
        ("\"2027-06-01T00:00:00Z\"", "\"2027-06-01\"", "valid_until", 4),
        ("\"2027-06-01T00:00:00Z\"", "\"2025-06-01T00:00:00Z\"", "valid_until", 4),
        ("rate = 1500", "rate = 0", "classes.standard.rate", 9),
        ("rate = 1500", "rate = 200001", "classes.standard.rate", 9),
        ("rate = 1500", "rate = -1", "classes.standard.rate", 9),
        ("rate = 1500", "rate = \"1500\"", "rate", 9),
        ("rate = 1500", "rate = 1500\nburst = 3", "burst", 10),
        ("schedule = \"jittered\"", "schedule = \"bursty\"", "schedule", 10),
        ("schedule = \"jittered\"", "schedule = \"pattern\"", "classes.standard.schedule", 10),
        (
            "schedule = \"jittered\"",
            "schedule = \"jittered\"\npattern = [1, 2]",
            "classes.standard.pattern",
            11,
        ),
        ("schedule = \"jittered\"", "schedule = \"pattern\"\npattern = []", "classes.standard.pattern", 11),
        ("schedule = \"jittered\"", "schedule = \"pattern\"\npattern = [1]", "classes.standard.pattern", 11),
        (
            "schedule = \"jittered\"",
            "schedule = \"pattern\"\npattern = [1, 0]",
            "classes.standard.pattern",
            11,
        ),
        (
            "schedule = \"jittered\"",
            "schedule = \"pattern\"\npattern = [1, 101]",
            "classes.standard.pattern",
            11,
        ),
        ("schedule = \"jittered\"", "schedule = \"pattern\"\npattern = [1, \"2\"]", "pattern", 11),
        ("schedule = \"jittered\"", "schedule = \"pattern\"\npattern = 5", "pattern", 11),
        ("schedule = \"jittered\"", "schedule = \"pattern\"\ncycle = 5", "cycle", 11),
        ("schedule = \"jittered\"", "schedule = \"poisson\"\ngap = 3", "gap", 11),
        (
            "rate = 1500\nschedule = \"jittered\"",
            "rate = 19\nschedule = \"poisson\"",
            "classes.standard.rate",
            9,
        ),
        (
            "rate = 1500\nschedule = \"jittered\"",
            "rate = 1\nschedule = \"pattern\"\npattern = [1, 2]",
            "classes.standard.rate",
            9,
        ),
        ("roles = [\"entry\"]", "roles = []", "relays.roles", 21),
        ("roles = [\"entry\"]", "roles = [\"entry\", \"entry\"]", "relays.roles", 21),
        ("roles = [\"entry\"]", "roles = [\"guard\"]", "roles", 21),
        ("name = \"middle\"", "name = \"entry\"", "relays.name", 25),
        ("name = \"middle\"", "name = \"Middle\"", "relays.name", 25),
        ("name = \"middle\"", "name = \"\"", "relays.name", 25),
        ("00000002\"", "00000001\"", "relays.id", 24),
        ("00000002\"", "0000002\"", "relays.id", 24),
        ("192.0.2.2:7443", "192.0.2.1:7443", "relays.address", 26),
        ("192.0.2.2:7443", "192.0.2.2:0", "relays.address", 26),
        ("192.0.2.2:7443", "0.0.0.0:7443", "relays.address", 26),
        ("192.0.2.2:7443", "192.0.2.2", "address", 26),
        ("key = \"02", "key = \"2", "relays.key", 27),
        ("[\"middle\", \"exit\"]", "[\"middle\", \"end\"]", "trunks.between", 42),
        ("[\"middle\", \"exit\"]", "[\"exit\", \"exit\"]", "trunks.between", 42),
        ("[\"middle\", \"exit\"]", "[\"middle\", \"entry\"]", "trunks.between", 42),
        ("class = \"trunk\"", "class = \"truck\"", "trunks.class", 39),
    ] {
        let text = plain();
        assert!(text.contains(from), "{from}");
        let error = NetworkDocument::parse_unverified(file(), &text.replacen(from, to, 1)).expect_err(to);
        assert_eq!((error.key.as_deref(), error.line), (Some(key), Some(line)), "{to}: {error}");
        assert!(!error.remedy.is_empty());
    }
    let repeated = body([&[1; 32], &[1; 32], &[3; 32]]);
    let error = NetworkDocument::parse_unverified(file(), &repeated).unwrap_err();
    assert_eq!((error.key.as_deref(), error.line), (Some("relays.key"), Some(27)));
}

#[test]
fn every_schedule_is_read() {
    let read = |rate: u32, schedule: &str| {
        let text = plain().replacen(
            "rate = 1500\nschedule = \"jittered\"",
            &format!("rate = {rate}\n{schedule}"),
            1,
        );
        NetworkDocument::parse_unverified(file(), &text).unwrap().classes["standard"]
    };
    for (rate, schedule, law) in [
        (1, "schedule = \"constant\"", Law::Constant),
        (1, "schedule = \"jittered\"", Law::Jittered),
        (20, "schedule = \"poisson\"", Law::Poisson),
        (
            3,
            "schedule = \"pattern\"\npattern = [\n1,\n1, 6]",
            Law::Pattern(Pattern::new(&[1, 1, 6]).unwrap()),
        ),
    ] {
        assert_eq!(read(rate, schedule), Class { rate, schedule: law });
    }
}

#[test]
fn the_clients_class_is_the_one_left_over() {
    let class = |text: &str| {
        let document = NetworkDocument::parse_unverified(file(), text).unwrap();
        document.class_of_clients(file()).map(|(name, class)| (name.to_owned(), class.rate))
    };
    assert_eq!(class(&plain()), Ok(("standard".to_owned(), 1500)));
    let more = plain().replacen(
        "[classes.trunk]",
        "[classes.other]\nrate = 5\nschedule = \"constant\"\n[classes.trunk]",
        1,
    );
    let none = plain()
        .replace("class = \"trunk\"", "class = \"standard\"")
        .replace("[classes.trunk]", "[classes.x]");
    let none = none.replacen("[classes.x]\nrate = 2000\nschedule = \"constant\"\n", "", 1);
    for text in [more, none] {
        let error = class(&text).unwrap_err();
        assert_eq!(error.key.as_deref(), Some("classes"), "{error}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text: String, at in 0_usize..1100, insert in "[ -~\n]{0,12}") {
        let _ = NetworkDocument::parse_unverified(file(), &text);
        let mut mutated = plain();
        let at = at.min(mutated.len());
        mutated.insert_str(at, &insert);
        let _ = NetworkDocument::parse_unverified(file(), &mutated);
        let _ = verify(&text, &operator().public());
    }
}
