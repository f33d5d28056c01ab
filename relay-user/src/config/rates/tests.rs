use super::super::NetworkDocument;
use super::super::network::tests::body;
use super::*;
use std::path::Path;

/// The document of the other tests, with two classes more and every table of this module. Returns its text.
fn text() -> String {
    let plain = body([&[1; 32], &[2; 32], &[3; 32]]);
    let classes = r#"[classes.trunk-low]
rate = 1600
schedule = "constant"

[classes.light]
rate = 300
schedule = "jittered"

[epochs]
seconds = 900

[clients]
class = "standard"
adaptive = { classes = ["light", "standard"], epsilon = 1.5 }
lower = ["light"]

[loss]
high = 0.05
recover = 6
limit = 0.25
seconds = 5
pause = 30

[classes.trunk]
"#;
    let text = plain.replacen("[classes.trunk]\n", classes, 1);
    let trunk = r#"class = "trunk"
hours = [
  { at = "07:00", class = "trunk" },
  { at = "22:30", class = "trunk-low" },
]
lower = ["trunk-low"]
"#;
    text.replacen("class = \"trunk\"\n", trunk, 1)
}

fn parse(text: &str) -> Result<NetworkDocument, ConfigError> {
    NetworkDocument::parse_unverified(Path::new("network.toml"), text)
}

fn line_of(text: &str, part: &str) -> usize {
    let at = text.find(part).unwrap_or_else(|| panic!("{part} is not in the text"));
    text[..at].matches('\n').count() + 1
}

#[test]
fn every_table_is_read() {
    let document = parse(&text()).unwrap();
    assert_eq!(document.epoch_seconds, 900);
    let clients = document.clients.as_ref().unwrap();
    assert_eq!(clients.adaptive.as_ref().unwrap().epsilon, 1.5);
    assert_eq!(clients.lower, ["light"]);
    let rules = LossRules { high: 50_000, recover: 6, limit: 250_000, seconds: 5, pause: 30 };
    assert_eq!(document.loss, rules);
    let hours = &document.trunks[0].hours;
    assert_eq!(hours.iter().map(|hour| hour.second).collect::<Vec<_>>(), [7 * 3600, 22 * 3600 + 1800]);
    assert_eq!(document.trunks[0].lower, ["trunk-low"]);
    assert!(document.trunks[1].hours.is_empty());
    assert!(document.is_of_trunks("trunk-low"), "at night it is");
}

#[test]
fn without_the_tables_everything_stays_fixed() {
    let document = parse(&body([&[1; 32], &[2; 32], &[3; 32]])).unwrap();
    assert_eq!((document.epoch_seconds, document.loss), (DEFAULT_EPOCH, LossRules::default()));
    assert_eq!(document.clients, None);
    assert!(document.trunks.iter().all(|trunk| trunk.hours.is_empty() && trunk.lower.is_empty()));
}

#[test]
fn each_mistake_is_refused_at_its_place() {
    for (from, to, key) in [
        ("seconds = 900", "seconds = 7", "epochs.seconds"),
        ("seconds = 900", "seconds = 700", "epochs.seconds"),
        ("seconds = 900", "seconds = 172800", "epochs.seconds"),
        ("seconds = 900", "minutes = 15", "minutes"),
        ("[epochs]\nseconds = 900", "[epochs]", "seconds"),
        ("class = \"standard\"\nadaptive", "class = \"gold\"\nadaptive", "clients.class"),
        ("[\"light\", \"standard\"]", "[\"light\", \"gold\"]", "clients.adaptive.classes"),
        ("[\"light\", \"standard\"]", "[\"light\", \"light\"]", "clients.adaptive.classes"),
        ("[\"light\", \"standard\"]", "[\"standard\"]", "clients.adaptive.classes"),
        ("[\"light\", \"standard\"]", "[\"light\", \"trunk\"]", "clients.adaptive.classes"),
        ("epsilon = 1.5", "epsilon = 0", "clients.adaptive.epsilon"),
        ("epsilon = 1.5", "epsilon = 17", "clients.adaptive.epsilon"),
        ("epsilon = 1.5", "epsilon = nan", "clients.adaptive.epsilon"),
        ("epsilon = 1.5", "epsilon = \"1\"", "adaptive"),
        ("lower = [\"light\"]", "lower = [\"gold\"]", "clients.lower"),
        ("lower = [\"light\"]", "lower = [\"trunk\"]", "clients.lower"),
        ("high = 0.05", "high = 0.0", "loss.high"),
        ("high = 0.05", "high = 1.0", "loss.high"),
        ("limit = 0.25", "limit = 25", "loss.limit"),
        ("limit = 0.25", "limit = 0.05", "loss.limit"),
        ("recover = 6", "recover = 0", "loss.recover"),
        ("seconds = 5\n", "seconds = 61\n", "loss.seconds"),
        ("pause = 30", "pause = 3601", "loss.pause"),
        ("pause = 30", "pause = 30\nlow = 0.1", "low"),
        ("{ at = \"07:00\"", "{ at = \"7:00\"", "trunks.hours"),
        ("{ at = \"07:00\"", "{ at = \"24:00\"", "trunks.hours"),
        ("{ at = \"07:00\"", "{ at = \"07:10\"", "trunks.hours"),
        ("{ at = \"22:30\"", "{ at = \"07:00\"", "trunks.hours"),
        ("{ at = \"22:30\", class = \"trunk-low\" }", "{ at = \"22:30\", class = \"gold\" }", "trunks.hours"),
        ("{ at = \"22:30\", class = \"trunk-low\" },", "", "trunks.hours"),
        ("class = \"trunk-low\" }", "class = \"light\" }", "trunks.hours"),
        ("lower = [\"trunk-low\"]", "lower = [\"trunk-low\", \"trunk-low\"]", "trunks.lower"),
        ("lower = [\"trunk-low\"]", "lower = [\"trunk-low\", \"light\"]", "trunks.lower"),
        ("lower = [\"trunk-low\"]", "lower = [\"trunk\"]", "trunks.lower"),
    ] {
        let text = text();
        let changed = text.replacen(from, to, 1);
        assert_ne!(text, changed, "{from}");
        let error = parse(&changed).expect_err(to);
        assert_eq!(error.key.as_deref(), Some(key), "{to}: {error}");
        assert!(error.line.is_some() && !error.remedy.is_empty(), "{error}");
        assert!(error.to_string().starts_with("network.toml:"), "{error}");
    }
}

#[test]
fn refusals_name_the_line() {
    for (from, to) in [
        ("seconds = 900", "seconds = 7"),
        ("epsilon = 1.5", "epsilon = 17"),
        ("lower = [\"light\"]", "lower = [\"gold\"]"),
        ("limit = 0.25", "limit = 25"),
        ("{ at = \"22:30\"", "{ at = \"22:31\""),
    ] {
        let changed = text().replacen(from, to, 1);
        assert_eq!(parse(&changed).unwrap_err().line, Some(line_of(&changed, to)), "{to}");
    }
}

#[test]
fn a_class_that_its_own_hours_do_not_have_is_refused() {
    let changed = text().replacen("\"07:00\", class = \"trunk\"", "\"07:00\", class = \"light\"", 1);
    let error = parse(&changed).unwrap_err();
    assert_eq!(error.key.as_deref(), Some("trunks.class"), "{error}");
}

#[test]
fn hours_and_choices_exclude_each_other() {
    let hours = "lower = [\"light\"]\nhours = [{ at = \"07:00\", class = \"standard\" }, { at = \"23:00\", class = \"light\" }]";
    let changed = text().replacen("lower = [\"light\"]", hours, 1);
    let error = parse(&changed).unwrap_err();
    assert_eq!(
        (error.key.as_deref(), error.line),
        (Some("clients.adaptive"), Some(line_of(&changed, "adaptive =")))
    );
    let adaptive = "adaptive = { classes = [\"light\", \"standard\"], epsilon = 1.5 }\n";
    let document = parse(&changed.replacen(adaptive, "", 1)).unwrap();
    assert_eq!(document.clients.unwrap().hours.len(), 2);
}

#[test]
fn a_step_for_loss_on_which_no_circuit_fits_is_refused() {
    let changed = text().replacen("rate = 1600", "rate = 1505", 1);
    let one_place = changed.replacen("\"22:30\", class = \"trunk-low\"", "\"22:30\", class = \"trunk\"", 1);
    let error = parse(&one_place).unwrap_err();
    assert_eq!(
        (error.key.as_deref(), error.line),
        (Some("trunks.lower"), Some(line_of(&one_place, "lower = [\"trunk-low")))
    );
    assert!(error.what.contains("has 1499 cells per second for circuits, and one takes 1500"), "{error}");
    parse(&one_place.replacen("rate = 1505", "rate = 1506", 1)).unwrap();
}

#[test]
fn epochs_are_long_enough_for_what_is_told_in_them() {
    let with = |seconds: u32, light: u32| {
        let changed = text().replacen("seconds = 900", &format!("seconds = {seconds}"), 1).replacen(
            "rate = 300",
            &format!("rate = {light}"),
            1,
        );
        (parse(&changed).err(), line_of(&changed, "seconds ="))
    };
    for (seconds, light) in [(10, 160), (12, 40), (20, 10), (40, 3), (900, 3)] {
        assert_eq!(with(seconds, light).0, None, "{seconds} s, {light} cells per second");
    }
    for (seconds, light, remedy) in
        [(10, 159, "seconds = 12"), (12, 39, "seconds = 15"), (900, 2, "a higher rate")]
    {
        let (error, line) = with(seconds, light);
        let error = error.unwrap_or_else(|| panic!("{seconds} s, {light} cells per second"));
        assert_eq!((error.key.as_deref(), error.line), (Some("epochs.seconds"), Some(line)), "{error}");
        assert!(error.what.contains("is too short") && error.remedy.contains(remedy), "{error}");
    }
    // The usual length is held to the same, though no line gives it.
    let usual = text().replacen("[epochs]\nseconds = 900\n", "", 1).replacen("22:30", "22:00", 1);
    assert_eq!(parse(&usual).err(), None);
    let slow = usual.replacen("rate = 300", "rate = 2", 1);
    let error = parse(&slow).unwrap_err();
    assert_eq!(error.key.as_deref(), Some("clients.class"), "{error}");
    assert!(error.what.contains("3600 s is too short"), "{error}");
    // Hours stand in the document: nobody tells them.
    let hours = "hours = [{ at = \"07:00\", class = \"standard\" }, { at = \"23:00\", class = \"light\" }]\n";
    let silent = text()
        .replacen(
            "adaptive = { classes = [\"light\", \"standard\"], epsilon = 1.5 }\nlower = [\"light\"]\n",
            hours,
            1,
        )
        .replacen("seconds = 900", "seconds = 10", 1)
        .replacen("rate = 300", "rate = 2", 1);
    assert_eq!(parse(&silent).err(), None);
}
