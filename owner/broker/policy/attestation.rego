# The attestation policy of coffer-kbs where none was handed in: what the verifier found by the reference values stands.
package policy

import rego.v1

trust_claims := input["ear.trustworthiness-vector"]
