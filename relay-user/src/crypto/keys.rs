//! Long-lived keys and the files they live in.
//!
//! A key file is one line, `KIND HEX`: the kind keeps a relay key from being used as an operator key. It is readable by
//! its owner only, is never overwritten, and never passes a command line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::agreement::{self, X25519};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

const RELAY_KIND: &str = "evenwire-relay-key";
const OPERATOR_KIND: &str = "evenwire-operator-key";
/// Bytes of a key file at most: a longer file is certainly something else.
const MAX_FILE_LEN: u64 = 256;

/// A relay's X25519 key. Erased on drop.
pub struct StaticKey {
    secret: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl StaticKey {
    /// A fresh key from the system's randomness.
    pub fn generate() -> Self {
        Self::from_bytes(random_secret())
    }

    /// The key with this secret scalar.
    pub fn from_bytes(secret: Zeroizing<[u8; 32]>) -> Self {
        let key = agreement::PrivateKey::from_private_key(&X25519, &*secret)
            .expect("every 32 bytes are an X25519 scalar");
        let public = key.compute_public_key().expect("every X25519 scalar has a public key");
        let public = public.as_ref().try_into().expect("X25519 public keys have 32 bytes");
        Self { secret, public }
    }

    /// The public half, as the network document carries it.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    pub(super) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Reads a relay's key file.
    ///
    /// # Errors
    /// [`KeyFileError`] if the file cannot be read, others may read it, or it holds no relay key.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        read(path, RELAY_KIND).map(Self::from_bytes)
    }

    /// Writes the key to a new file with mode 0600.
    ///
    /// # Errors
    /// [`KeyFileError`] if `path` exists or cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), KeyFileError> {
        write(path, RELAY_KIND, &self.secret)
    }
}

/// An operator's Ed25519 key, which signs network documents.
pub struct OperatorKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

impl OperatorKey {
    /// A fresh key from the system's randomness.
    pub fn generate() -> Self {
        Self::from_seed(random_secret())
    }

    /// The key with this seed (RFC 8032's private key).
    pub fn from_seed(seed: Zeroizing<[u8; 32]>) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).expect("every 32 bytes are an Ed25519 seed");
        Self { seed, pair }
    }

    /// The public half, by which relays and clients know the operator.
    pub fn public(&self) -> [u8; 32] {
        self.pair.public_key().as_ref().try_into().expect("Ed25519 public keys have 32 bytes")
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.pair.sign(message).as_ref().try_into().expect("Ed25519 signatures have 64 bytes")
    }

    /// Reads an operator's key file.
    ///
    /// # Errors
    /// [`KeyFileError`] if the file cannot be read, others may read it, or it holds no operator key.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        read(path, OPERATOR_KIND).map(Self::from_seed)
    }

    /// Writes the key to a new file with mode 0600.
    ///
    /// # Errors
    /// [`KeyFileError`] if `path` exists or cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), KeyFileError> {
        write(path, OPERATOR_KIND, &self.seed)
    }
}

/// Whether `signature` is the operator's over `message`.
pub fn is_signed_by(operator: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(&ED25519, operator).verify(message, signature).is_ok()
}

impl std::fmt::Debug for StaticKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StaticKey").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for OperatorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OperatorKey").finish_non_exhaustive()
    }
}

/// Why a key file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("{}: cannot read the key file: {source}; make one with `relay keygen`, or correct the path", path.display())]
    Read {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its mode lets others read or change it.
    #[error("{}: mode {mode:04o} lets others use the key; run `chmod 600` on it, and replace the key if it may have \
             been read", path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds something else.
    #[error("{}: is not a file of one line `{kind} <64 hex digits>`; name a file that `relay keygen` made for this use", path.display())]
    Malformed {
        /// The key file.
        path: PathBuf,
        /// First word that was expected.
        kind: &'static str,
    },
    /// A file of that name exists.
    #[error("{}: exists; a key is never overwritten, choose another name or move the file away", path.display())]
    Exists {
        /// The key file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("{}: cannot write the key file: {source}; choose a directory that you may write to", path.display())]
    Write {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn random_secret() -> Zeroizing<[u8; 32]> {
    let mut secret = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *secret).expect("the system's random generator always answers");
    secret
}

fn read(path: &Path, kind: &'static str) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    let failed = |source| KeyFileError::Read { path: path.to_owned(), source };
    let malformed = || KeyFileError::Malformed { path: path.to_owned(), kind };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    // Room for the whole file beforehand: a growing string leaves copies of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(512));
    file.take(MAX_FILE_LEN).read_to_string(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => malformed(),
        _ => failed(error),
    })?;
    let digits =
        text.trim_end().strip_prefix(kind).and_then(|rest| rest.strip_prefix(' ')).ok_or_else(malformed)?;
    let mut secret = Zeroizing::new([0; 32]);
    hex::decode_to_slice(digits, &mut *secret).map_err(|_| malformed())?;
    Ok(secret)
}

fn write(path: &Path, kind: &str, secret: &[u8; 32]) -> Result<(), KeyFileError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyFileError::Exists { path: path.to_owned() },
        _ => KeyFileError::Write { path: path.to_owned(), source },
    };
    let mut digits = Zeroizing::new([0; 64]);
    hex::encode_to_slice(secret, &mut *digits).expect("64 digits hold 32 bytes");

    // A hard link takes its name only if nobody has it, so a crash leaves a whole key or none under `path`.
    let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
    let mut draft_name = std::ffi::OsString::from(".");
    draft_name.push(name);
    draft_name.push(format!(".{}", std::process::id()));
    let draft = path.with_file_name(draft_name);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(failed)?;
    let written = (|| {
        file.write_all(kind.as_bytes())?;
        file.write_all(b" ")?;
        file.write_all(&*digits)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::hard_link(&draft, path)
    })();
    fs::remove_file(&draft).map_err(failed)?;
    written.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_come_back_from_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let relay = StaticKey::generate();
        relay.save(&dir.path().join("relay.key")).unwrap();
        assert_eq!(StaticKey::load(&dir.path().join("relay.key")).unwrap().public(), relay.public());
        let operator = OperatorKey::generate();
        operator.save(&dir.path().join("operator.key")).unwrap();
        assert_eq!(OperatorKey::load(&dir.path().join("operator.key")).unwrap().public(), operator.public());
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "a draft was left behind: {names:?}");
        assert_eq!(fs::metadata(dir.path().join("relay.key")).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.key");
        let first = StaticKey::generate();
        first.save(&path).unwrap();
        assert!(matches!(StaticKey::generate().save(&path), Err(KeyFileError::Exists { .. })));
        assert_eq!(StaticKey::load(&path).unwrap().public(), first.public());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_may_use_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.key");
        StaticKey::generate().save(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = StaticKey::load(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Exposed { .. }));
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn files_of_another_kind_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operator.key");
        OperatorKey::generate().save(&path).unwrap();
        assert!(matches!(StaticKey::load(&path), Err(KeyFileError::Malformed { .. })));
        for content in
            ["", "evenwire-relay-key ", "evenwire-relay-key 00", "evenwire-relay-key\n", "\u{fffd}"]
        {
            fs::write(&path, content).unwrap();
            assert!(matches!(StaticKey::load(&path), Err(KeyFileError::Malformed { .. })), "{content:?}");
        }
        fs::write(&path, [0xff; 64]).unwrap();
        assert!(matches!(StaticKey::load(&path), Err(KeyFileError::Malformed { .. })));
        assert!(matches!(StaticKey::load(&dir.path().join("none")), Err(KeyFileError::Read { .. })));
    }

    #[test]
    fn public_keys_are_those_that_the_handshake_library_computes() {
        let builder = snow::Builder::new("Noise_NK_25519_AESGCM_SHA256".parse().unwrap());
        for _ in 0..16 {
            let pair = builder.generate_keypair().unwrap();
            let secret = Zeroizing::new(pair.private.try_into().unwrap());
            assert_eq!(StaticKey::from_bytes(secret).public()[..], pair.public);
        }
    }

    #[test]
    fn a_signature_holds_for_its_message_and_operator_only() {
        let (operator, other) = (OperatorKey::generate(), OperatorKey::generate());
        let signature = operator.sign(b"document");
        assert!(is_signed_by(&operator.public(), b"document", &signature));
        assert!(!is_signed_by(&operator.public(), b"documenT", &signature));
        assert!(!is_signed_by(&other.public(), b"document", &signature));
        let mut tampered = signature;
        tampered[40] ^= 1;
        assert!(!is_signed_by(&operator.public(), b"document", &tampered));
    }
}
