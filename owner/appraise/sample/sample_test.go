package sample

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
)

func TestVerify(t *testing.T) {
	for name, tc := range map[string]struct {
		raw        string
		reportData string
		want       error
	}{
		"good":          {`{"svn":"1","report_data":"YWJj"}`, "abc", nil},
		"other session": {`{"svn":"1","report_data":"YWJj"}`, "abd", errdefs.ErrPermissionDenied},
		"prefix":        {`{"svn":"1","report_data":"YWJj"}`, "abcd", errdefs.ErrPermissionDenied},
		"nothing bound": {`{"svn":"1","report_data":""}`, "", errdefs.ErrPermissionDenied},
		"no data":       {`{"svn":"1"}`, "abc", errdefs.ErrPermissionDenied},
		"not base64":    {`{"svn":"1","report_data":"!"}`, "abc", errdefs.ErrInvalidArgument},
		"no svn":        {`{"report_data":"YWJj"}`, "abc", errdefs.ErrInvalidArgument},
		"unknown":       {`{"svn":"1","report_data":"YWJj","x":1}`, "abc", errdefs.ErrInvalidArgument},
		"not JSON":      {`x`, "abc", errdefs.ErrInvalidArgument},
		"null":          {`null`, "abc", errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := New().Verify(t.Context(), appraise.Evidence{Raw: json.RawMessage(tc.raw), ReportData: []byte(tc.reportData), InitDataDigest: []byte{1}})
			if tc.want != nil {
				if !errors.Is(err, tc.want) {
					t.Errorf("got %+v, %v", result, err)
				}
				return
			}
			if err != nil || result.Status != appraise.None || result.InitData != "AQ==" || result.Claims["svn"] != "1" {
				t.Errorf("got %+v, %v", result, err)
			}
		})
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"svn":"1","report_data":"YWJj"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		result, err := New().Verify(t.Context(), appraise.Evidence{Raw: raw, ReportData: []byte("abc")})
		if err == nil && result.Status != appraise.None {
			t.Errorf("%q gave status %s", raw, result.Status)
		}
	})
}
