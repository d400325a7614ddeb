# A resource policy of coffer-kbs: keys for models that run on confidential GPUs. Put it in force with
#
#	cofferctl kbs policy set resource gpus.rego
#
# A resource under gpu/ goes only to a guest all of whose parts were appraised as affirming and that has as many GPUs as the resource's
# name begins with, of one generation: kbs:///gpu/hopper/8-llama needs eight Hopper GPUs. Any other resource needs an affirming guest.
package policy

import rego.v1

default allow := false

allow if {
	data.plugin == "resource"
	count(doubts) == 0
}

doubts contains sprintf("%s was appraised as %q, not as affirming", [part, object.get(appraisal, "ear.status", "nothing")]) if {
	some part, appraisal in input.submods
	object.get(appraisal, "ear.status", "") != "affirming"
}

# Codes from 32 on are doubts (draft-ietf-rats-ar4si, section 2.3).
doubts contains sprintf("%s of %s is %d in the trust vector", [claim, part, code]) if {
	some part, appraisal in input.submods
	some claim, code in appraisal["ear.trustworthiness-vector"]
	code >= 32
}

doubts contains "the token appraises nothing" if count(object.get(input, "submods", {})) == 0

# What the guest's NVIDIA devices say, by their part of the token.
devices[part] := claims if {
	some part, appraisal in input.submods
	claims := appraisal["ear.veraison.annotated-evidence"].nvidia
}

# A GPU protects what it computes: it measured what NVIDIA did, which none does that may be debugged, and is of the generation wanted.
protected contains part if {
	some part, claims in devices
	startswith(part, "gpu")
	lower(claims.arch) == data["resource-path"][1]
	claims.measres == "success"
	claims.dbgstat == "disabled"
	claims.secboot == true
}

wanted := to_number(split(data["resource-path"][2], "-")[0]) if data["resource-path"][0] == "gpu"

doubts contains sprintf("the guest has %d protected GPUs of that generation, and the resource is for %d", [count(protected), wanted]) if {
	count(protected) != wanted
}

doubts contains "a resource under gpu/ is named GENERATION/NUMBER-NAME" if {
	data["resource-path"][0] == "gpu"
	not wanted
}

reason := concat("; ", doubts) if count(doubts) > 0
