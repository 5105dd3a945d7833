#!/bin/sh
# One script for both tiers: with BACK set it is the front, which asks the back by its DNS name.
echo "$(date -u +%H:%M:%S) ${TIER} version @VERSION@ on $(hostname) answers ${REMOTE_ADDR}" >&2
printf 'Content-Type: text/plain\r\n\r\n'
echo "${GREETING:-hello} from ${TIER} $(hostname)"
if [ -n "$BACK" ]; then
    timeout 5 wget -q -O - --header "Authorization: Bearer $TOKEN" "http://$BACK/cgi-bin/tier" || echo "the back tier does not answer"
elif [ "$HTTP_AUTHORIZATION" = "Bearer $TOKEN" ]; then
    echo "token accepted"
fi
