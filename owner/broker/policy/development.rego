# The resource policy of coffer-kbs with allow_sample where none was handed in: affirming, or a guest without TEE, which proves nothing.
package policy

import rego.v1

default allow := false

evidence := object.get(input, ["submods", "cpu0", "ear.veraison.annotated-evidence"], {})

is_sample if "sample" in object.keys(evidence)

allow if {
	data.plugin == "resource"
	is_sample
	count(input.submods) == 1
}

allow if {
	data.plugin == "resource"
	not is_sample
	count(input.submods) > 0
	every appraisal in input.submods {
		appraisal["ear.status"] == "affirming"
	}
}

reason := "sample evidence is allowed" if {
	allow
	is_sample
}

reason := "all parts were appraised as affirming" if {
	allow
	not is_sample
}

reason := "not all parts were appraised as affirming" if not allow
