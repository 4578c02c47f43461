#!/usr/bin/perl
# A service that starts in a few milliseconds, for tests that start hundreds: answers whatever it is asked with its version.
use strict;
use warnings;
use IO::Socket::INET;

my ($version, $mode) = ('@VERSION@', '@MODE@');
if ($mode eq 'exit') {
    print STDERR "cannot go on: the table `dogs` is missing\n";
    exit 3;
}
my $server = IO::Socket::INET->new(
    LocalAddr => $ENV{HOST}, LocalPort => $ENV{PORT}, Listen => 64, ReuseAddr => 1,
) or die "cannot listen: $@";
while (1) {
    my $client = $server->accept or next;
    local $/ = "\r\n";
    while (my $line = <$client>) { last if $line eq "\r\n" }
    print $client "HTTP/1.1 200 OK\r\nContent-Length: ", length($version), "\r\nConnection: close\r\n\r\n", $version;
    close $client;
}
