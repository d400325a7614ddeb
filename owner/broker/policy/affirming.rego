# The resource policy of coffer-kbs where none was handed in: a resource goes only to a guest all of whose parts (its processor, each of
# its devices) were appraised as affirming.
package policy

import rego.v1

default allow := false

allow if {
	data.plugin == "resource"
	count(input.submods) > 0
	count(doubts) == 0
}

doubts contains sprintf("%s was appraised as %q, not as affirming", [part, appraisal["ear.status"]]) if {
	some part, appraisal in input.submods
	appraisal["ear.status"] != "affirming"
}

# Codes from 32 on are doubts (draft-ietf-rats-ar4si, section 2.3).
doubts contains sprintf("%s of %s is %d in the trust vector", [claim, part, code]) if {
	some part, appraisal in input.submods
	some claim, code in appraisal["ear.trustworthiness-vector"]
	code >= 32
}

doubts contains sprintf("%s was not appraised", [part]) if {
	some part, appraisal in input.submods
	not appraisal["ear.status"]
}

doubts contains "the token appraises nothing" if count(object.get(input, "submods", {})) == 0

reason := concat("; ", doubts) if count(doubts) > 0

reason := "all parts were appraised as affirming" if allow
