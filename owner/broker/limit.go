package broker

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// maxPeers bounds the limiter's memory. When more peers than this are active the limiter forgets all of them at once: that lets some
// through too early, which is better than growing or than refusing everybody.
const maxPeers = 16384

// limiter gives each peer address a bucket of tokens, one per request.
type limiter struct {
	perSecond float64
	burst     float64
	now       func() time.Time

	mu      sync.Mutex
	buckets map[string]*bucket
}

type bucket struct {
	tokens float64
	filled time.Time
}

func newLimiter(perSecond, burst int, now func() time.Time) *limiter {
	return &limiter{perSecond: float64(perSecond), burst: float64(burst), now: now, buckets: map[string]*bucket{}}
}

func (l *limiter) allow(peer string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	b, ok := l.buckets[peer]
	if !ok {
		if len(l.buckets) >= maxPeers {
			l.forgetIdle(now)
		}
		b = &bucket{tokens: l.burst, filled: now}
		l.buckets[peer] = b
	}
	b.tokens = min(l.burst, b.tokens+max(0, now.Sub(b.filled).Seconds())*l.perSecond)
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// forgetIdle drops the peers whose buckets have filled up again, and all where that does not help.
func (l *limiter) forgetIdle(now time.Time) {
	for peer, b := range l.buckets {
		if b.tokens+now.Sub(b.filled).Seconds()*l.perSecond >= l.burst {
			delete(l.buckets, peer)
		}
	}
	if len(l.buckets) >= maxPeers {
		clear(l.buckets)
	}
}

// peerOf returns the address that a request came from, without the port. Headers of proxies are not believed.
func peerOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
