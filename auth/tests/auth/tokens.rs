//! Tokens and API keys as attackers and accidents make them.

use std::fs;

use serde_json::json;
use tidegate_auth::{Credential, MAX_TOKEN_BYTES, Refused, Scope, mint, now};

use crate::fixture::{Fixture, SECRET, b64, claims, from, hs256, shared, unsigned};

#[tokio::test]
async fn each_algorithm_verifies_and_claims_become_a_principal() {
    let fixture = Fixture::new();
    let auth = fixture.public();
    let claims = claims(json!({}));
    for token in [
        fixture.rs256(json!({"alg": "RS256", "kid": "rsa"}), &claims),
        fixture.es256(json!({"alg": "ES256", "kid": "ec"}), &claims),
        fixture.eddsa(json!({"alg": "EdDSA", "kid": "ed"}), &claims),
    ] {
        let who = auth.bearer(&token).await.unwrap();
        assert_eq!((&*who.tenant, &*who.subject), ("acme", "alice"));
        assert_eq!(who.scopes.names(), ["jobs:submit", "jobs:read"]);
        assert_eq!(who.expires, claims["exp"].as_u64());
        assert!(matches!(&who.credential, Credential::Token { jti: Some(jti), .. } if jti == "j1"));
        assert_eq!(auth.standing(&who), Ok(()));
    }
    let token = hs256(SECRET, &claims);
    assert_eq!(fixture.shared().bearer(&token).await.unwrap().tenant, "default", "the issuer's fixed tenant");
}

#[tokio::test]
async fn e49_the_algorithm_and_the_key_come_from_the_configuration() {
    let fixture = Fixture::new();
    let auth = fixture.public();
    let claims = claims(json!({}));
    let refused = async |token: String| auth.bearer(&token).await.unwrap_err();
    // The public key as the shared secret, in every form that it is published in.
    let n = fixture.modulus();
    for secret in
        [n.clone(), b64(&n).into_bytes(), fixture.jwks(&["rsa"]).to_string().into_bytes(), SECRET.to_vec()]
    {
        assert_eq!(refused(hs256(&secret, &claims)).await, Refused::Algorithm);
    }
    for none in ["none", "None", "NONE", "nOnE", "", "HS512", "RS512", "PS256"] {
        for signature in ["", "AAAA"] {
            let token = format!("{}.{signature}", unsigned(&json!({"alg": none, "kid": "rsa"}), &claims));
            assert_eq!(refused(token).await, Refused::Algorithm, "{none}");
        }
    }
    // A key of one kind under the name of another.
    assert_eq!(
        refused(fixture.rs256(json!({"alg": "ES256", "kid": "rsa"}), &claims)).await,
        Refused::Algorithm
    );
    assert_eq!(
        refused(fixture.es256(json!({"alg": "RS256", "kid": "ec"}), &claims)).await,
        Refused::Algorithm
    );
    assert_eq!(
        refused(fixture.es256(json!({"alg": "ES256", "kid": "ed"}), &claims)).await,
        Refused::Algorithm
    );
    // Two keys under one name: each for its own algorithm.
    let twins = fixture.jwks(&["rsa", "ec"]).to_string();
    let twins = twins.replace("\"rsa\"", "\"twin\"").replace("\"ec\"", "\"twin\"");
    fs::write(fixture.dir.path().join("jwks.json"), twins).unwrap();
    let twins = fixture.public();
    for token in [
        fixture.rs256(json!({"alg": "RS256", "kid": "twin"}), &claims),
        fixture.es256(json!({"alg": "ES256", "kid": "twin"}), &claims),
    ] {
        assert!(twins.bearer(&token).await.is_ok());
    }
    // Wrong, missing, invented and secret kids.
    assert_eq!(
        refused(fixture.rs256(json!({"alg": "RS256", "kid": "new"}), &claims)).await,
        Refused::UnknownKey
    );
    assert_eq!(refused(fixture.rs256(json!({"alg": "RS256"}), &claims)).await, Refused::UnknownKey);
    assert_eq!(
        refused(fixture.rs256(json!({"alg": "RS256", "kid": "oct"}), &claims)).await,
        Refused::UnknownKey
    );
    let traversal = json!({"alg": "RS256", "kid": "../../etc/passwd"});
    assert_eq!(refused(fixture.rs256(traversal, &claims)).await, Refused::UnknownKey);
    // Keys that the token brings along, and extensions that must be understood.
    let own =
        json!({"alg": "RS256", "kid": "x", "jwk": fixture.jwks(&["rsa"])["keys"][0], "jku": "http://evil"});
    assert_eq!(refused(fixture.rs256(own, &claims)).await, Refused::UnknownKey);
    let critical = json!({"alg": "RS256", "kid": "rsa", "crit": ["b64"], "b64": false});
    assert_eq!(refused(fixture.rs256(critical, &claims)).await, Refused::Malformed);
    // Another's signature, a cut one, and claims that were changed after signing.
    let token = fixture.rs256(json!({"alg": "RS256", "kid": "rsa"}), &claims);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let header = message.split('.').next().unwrap();
    let other = Fixture::new().rs256(json!({"alg": "RS256", "kid": "rsa"}), &claims);
    assert_eq!(refused(other).await, Refused::Signature);
    assert_eq!(refused(format!("{message}.")).await, Refused::Signature);
    let forged = b64(self::claims(json!({"sub": "admin"})).to_string());
    assert_eq!(refused(format!("{header}.{forged}.{signature}")).await, Refused::Signature);
    // A shared secret's issuer takes no public key's token either.
    let token = fixture.rs256(json!({"alg": "RS256", "kid": "rsa"}), &claims);
    assert_eq!(fixture.shared().bearer(&token).await.unwrap_err(), Refused::Algorithm);
}

#[tokio::test]
async fn e49_times_audience_issuer_and_claims_are_demanded() {
    let fixture = Fixture::new();
    let auth = fixture.shared();
    let now = now();
    for (changes, expected) in [
        (json!({"exp": now - 10}), Refused::Expired),
        (json!({"exp": null}), Refused::Claim("exp")),
        (json!({"exp": "tomorrow"}), Refused::Claim("exp")),
        (json!({"exp": -1}), Refused::Claim("exp")),
        (json!({"nbf": now + 60}), Refused::NotYet),
        (json!({"nbf": "x"}), Refused::Claim("nbf")),
        (json!({"aud": "tidegate2"}), Refused::Audience),
        (json!({"aud": ["a", "b"]}), Refused::Audience),
        (json!({"aud": null}), Refused::Claim("aud")),
        (json!({"aud": 1}), Refused::Claim("aud")),
        (json!({"iss": "https://idp.example/"}), Refused::UnknownIssuer),
        (json!({"iss": null}), Refused::Claim("iss")),
        (json!({"iss": ["https://idp.example"]}), Refused::Malformed),
        (json!({"sub": null}), Refused::Claim("sub")),
        (json!({"sub": ""}), Refused::Claim("sub")),
        (json!({"sub": "a\nb"}), Refused::Claim("sub")),
        (json!({"sub": 7}), Refused::Claim("sub")),
        (json!({"jti": 7}), Refused::Claim("jti")),
    ] {
        let refused = auth.bearer(&hs256(SECRET, &claims(changes.clone()))).await.unwrap_err();
        assert_eq!(refused, expected, "{changes}");
    }
    // Within the leeway a token is taken; nothing that is open may outlive `exp`, though.
    let late = auth.bearer(&hs256(SECRET, &claims(json!({"exp": now - 1})))).await.unwrap();
    assert_eq!(auth.standing(&late), Err(Refused::Expired));
    assert!(
        auth.bearer(&hs256(SECRET, &claims(json!({"nbf": now + 2, "exp": (now + 60) as f64 + 0.5}))))
            .await
            .is_ok()
    );
    let none = auth.bearer(&hs256(SECRET, &claims(json!({"scope": "admin *  JOBS:READ"})))).await.unwrap();
    assert!(none.scopes.names().is_empty());
    // An issuer of one tenant's people must not become every tenant's gateway by a word in a claim.
    let all = json!({"scope": "jobs:read engine:delegate engine:work"});
    assert_eq!(
        auth.bearer(&hs256(SECRET, &claims(all.clone()))).await.unwrap().scopes.names(),
        ["jobs:read"]
    );
    let granted = shared("grants = { 'engine:work' = ['engine:work'] }\n");
    let granted = from(&fixture.write(&granted));
    let who = granted.bearer(&hs256(SECRET, &claims(all))).await.unwrap();
    assert_eq!(who.scopes.names(), ["jobs:read", "engine:work"]);
    for tenant in [json!("Acme"), json!("a/b"), json!(null), json!(["acme"]), json!("")] {
        let auth = fixture.public();
        let token = fixture.eddsa(json!({"alg": "EdDSA", "kid": "ed"}), &claims(json!({"org": tenant})));
        assert_eq!(auth.bearer(&token).await.unwrap_err(), Refused::Claim("of the tenant"), "{tenant}");
    }
}

#[tokio::test]
async fn hostile_texts_are_refused_at_little_cost() {
    let fixture = Fixture::new();
    let auth = fixture.shared();
    let huge = hs256(SECRET, &claims(json!({"x": "y".repeat(MAX_TOKEN_BYTES)})));
    assert_eq!(auth.bearer(&huge).await.unwrap_err(), Refused::TooLong);
    let deep = format!("{}.{}.AA", b64(r#"{"alg":"HS256"}"#), b64("[".repeat(6000)));
    let good = hs256(SECRET, &claims(json!({})));
    let padded = good.replace('.', "=.");
    for bad in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "ä.ö.ü",
        "\0",
        &deep,
        &padded,
        &good[1..],
        &format!("{good}.x"),
        &format!(" {good}"),
    ] {
        assert!(auth.bearer(bad).await.is_err(), "{bad}");
    }
    // Doubled names are a way to tell two readers two things.
    let twice = b64(r#"{"alg":"HS256","alg":"none"}"#);
    let token = format!("{twice}.{}.AA", b64(claims(json!({})).to_string()));
    assert_eq!(auth.bearer(&token).await.unwrap_err(), Refused::Malformed);
    assert!(!format!("{auth:?}").contains("0123"));
}

#[tokio::test]
async fn api_keys_are_known_by_their_hash_until_they_end() {
    let fixture = Fixture::new();
    let ((key, hash), (ended, ended_hash)) = (mint::api_key(), mint::api_key());
    let entry = |hash: &[u8; 32], more: &str| {
        format!(
            "[[auth.api_key]]\nname = 'n'\nsha256 = '{}'\nsubject = 'ci'\ntenant = 'acme'\n\
             scopes = ['jobs:submit']\n{more}\n",
            mint::sha256_hex(hash)
        )
    };
    let text = entry(&hash, "expires = 2999-01-01T00:00:00Z")
        + &entry(&ended_hash, "expires = 2001-01-01T00:00:00Z");
    let auth = from(&fixture.write(&text));
    let who = auth.bearer(&key).await.unwrap();
    assert_eq!((&*who.tenant, &*who.subject, who.scopes.names()), ("acme", "ci", vec!["jobs:submit"]));
    for bad in [&ended, "tg_", &key[..key.len() - 1], &key.to_ascii_lowercase(), &mint::sha256_hex(&hash)] {
        assert!(auth.bearer(bad).await.is_err());
    }
    let process = auth.process_key();
    assert!(auth.bearer(&process).await.unwrap().scopes.allow(Scope::Delegate));
    assert_eq!(from(&fixture.write(&text)).bearer(&process).await.unwrap_err(), Refused::UnknownApiKey);
}

#[tokio::test]
async fn minted_tokens_verify() {
    let fixture = Fixture::new();
    let (private, public) = mint::ed25519().unwrap();
    fs::write(fixture.dir.path().join("jwks.json"), public.to_string()).unwrap();
    assert!(public["keys"][0].get("d").is_none(), "the private key stays private");
    let auth = fixture.public();
    let key = mint::SigningKey::from_jwk(&private.to_string()).unwrap();
    assert_eq!(auth.bearer(&key.sign(&claims(json!({}))).unwrap()).await.unwrap().subject, "alice");
    let key = mint::SigningKey::from_secret(str::from_utf8(SECRET).unwrap()).unwrap();
    assert!(fixture.shared().bearer(&key.sign(&claims(json!({}))).unwrap()).await.is_ok());
    assert!(
        mint::SigningKey::from_jwk(&public.to_string()).is_err()
            && mint::SigningKey::from_secret("short").is_err()
    );
    assert!(!format!("{key:?}").contains("0123"));
}
