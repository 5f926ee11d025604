//! A password as the server keeps it: the SCRAM-SHA-256 verifier (RFC 5803, RFC 7677). Sent in place of the password it keeps
//! that out of the server's log.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};

use super::conninfo::Password;
use super::{Kind, PgError, Result};

/// What PostgreSQL takes by default (`scram_iterations`).
const ITERATIONS: u32 = 4096;

/// What PostgreSQL takes (`SCRAM_DEFAULT_SALT_LEN`).
const SALT_BYTES: usize = 16;

type Key = [u8; 32];

/// The verifier of a password, with a new salt.
///
/// # Errors
///
/// [`Kind::Settings`] when the password has other characters than printable ASCII: those would have to be normalised first
/// (RFC 4013), which client and server do not always do alike.
pub fn verifier(password: &Password) -> Result<String> {
    let text = password.reveal();
    if text.is_empty() || !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(PgError::new(Kind::Settings, "the password has other characters than printable ASCII, or none")
            .with_hint("Choose one of letters, digits and punctuation, or make the role yourself."));
    }
    let mut salt = [0; SALT_BYTES];
    rand::rng().fill_bytes(&mut salt);
    Ok(written(text, &salt, ITERATIONS))
}

/// Whether a verifier that the server keeps is this password's. What is no such verifier is not.
pub fn matches(password: &Password, verifier: &str) -> bool {
    let parsed = || {
        let (iterations, rest) = verifier.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
        let salt = BASE64_STANDARD.decode(rest.split_once('$')?.0).ok()?;
        Some((iterations.parse().ok()?, salt))
    };
    parsed().is_some_and(|(iterations, salt)| written(password.reveal(), &salt, iterations) == verifier)
}

fn written(password: &str, salt: &[u8], iterations: u32) -> String {
    let (stored_key, server_key) = keys(password, salt, iterations);
    let encoded = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    format!("SCRAM-SHA-256${iterations}:{}${}:{}", encoded(salt), encoded(&stored_key), encoded(&server_key))
}

/// StoredKey and ServerKey (RFC 5802, section 3).
fn keys(password: &str, salt: &[u8], iterations: u32) -> (Key, Key) {
    let salted = salted(password.as_bytes(), salt, iterations);
    (Sha256::digest(mac(&salted, &[b"Client Key"])).into(), mac(&salted, &[b"Server Key"]))
}

/// Hi() of RFC 5802: PBKDF2 with one block.
fn salted(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let mut block = mac(password, &[salt, &1_u32.to_be_bytes()]);
    let mut sum = block;
    for _ in 1..iterations {
        block = mac(password, &[&block]);
        sum.iter_mut().zip(block).for_each(|(sum, byte)| *sum ^= byte);
    }
    sum
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677, section 3.
    #[test]
    fn the_keys_prove_what_the_rfc_says() {
        const MESSAGES: &[u8] = b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
            s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let (stored_key, server_key) = keys("pencil", &salt, 4096);
        let server_signature = BASE64_STANDARD.encode(mac(&server_key, &[MESSAGES]));
        assert_eq!(server_signature, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let proof = BASE64_STANDARD.decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=").unwrap();
        let signature = mac(&stored_key, &[MESSAGES]);
        let client_key: Vec<u8> = proof.iter().zip(signature).map(|(proof, byte)| proof ^ byte).collect();
        assert_eq!(Key::from(Sha256::digest(client_key)), stored_key);
    }

    #[test]
    fn a_verifier_is_its_passwords_and_no_others() {
        let password = Password::from("s3cret".to_owned());
        let made = verifier(&password).unwrap();
        assert!(matches(&password, &made) && !made.contains("s3cret"), "{made}");
        assert!(!matches(&"s3creT".to_owned().into(), &made));
        assert_ne!(verifier(&password).unwrap(), made, "the salt is new each time");
        for other in ["", "md5d41d8cd98f00b204e9800998ecf8427e", "SCRAM-SHA-256$x:y$z", "SCRAM-SHA-256$4096:$:"] {
            assert!(!matches(&password, other), "{other}");
        }
    }

    #[test]
    fn what_would_have_to_be_normalised_is_refused() {
        for text in ["", "pässword", "tab\there", "line\n", "\u{7f}"] {
            let refused = verifier(&text.to_owned().into()).unwrap_err();
            assert!(refused.hint().is_some(), "{text}");
        }
    }
}
